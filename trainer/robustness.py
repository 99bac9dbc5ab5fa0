"""Conditions a microphone brings: another rate, too quiet, clipped, a telephone's band, blocks lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.audio.resample import Resampler
from detector.audio.source import Floats
from trainer.data import read_audio

TELEPHONE_HZ = (300.0, 3400.0)
BLOCK_S = 0.02
LOST = 0.1


@dataclass(frozen=True)
class Condition:
    """rate: of the source, resampled as the daemon does, None for the model's; change: audio, its rate, a draw -> audio."""

    name: str
    rate: int | None = None
    change: Callable[[Floats, int, np.random.Generator], Floats] = lambda audio, rate, draw: audio

    def read(self, path: Path, rate: int, seed: list[int]) -> Floats:
        """A file as the model hears it, [samples] at its rate. Raises InputError for one that cannot be read."""
        audio = read_audio(path, self.rate or rate)
        if self.rate is not None:
            audio = resampled(audio, self.rate, rate)
        return self.change(audio, rate, np.random.default_rng(seed))


def resampled(audio: Floats, rate: int, to_rate: int) -> Floats:
    """Through the daemon's resampler, in blocks of BLOCK_S as a sound card hands them over."""
    resampler, block = Resampler(rate, to_rate), round(BLOCK_S * rate)
    parts = [resampler.push(audio[first : first + block]) for first in range(0, len(audio), block)]
    return np.concatenate([*parts, resampler.push(np.zeros(0, np.float32), last=True)])


def louder(db: float) -> Callable[[Floats, int, np.random.Generator], Floats]:
    """So many dB more, clipped at full scale."""
    return lambda audio, rate, draw: np.clip(audio * np.float32(10 ** (db / 20)), -1, 1)


def telephone(audio: Floats, rate: int, draw: np.random.Generator) -> Floats:
    """Nothing outside TELEPHONE_HZ."""
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1 / rate)
    spectrum[(hz < TELEPHONE_HZ[0]) | (hz > TELEPHONE_HZ[1])] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


def lossy(audio: Floats, rate: int, draw: np.random.Generator) -> Floats:
    """Silence in place of a random LOST of its blocks of BLOCK_S, as a network microphone conceals them."""
    block = round(BLOCK_S * rate)
    lost = draw.random(-(-len(audio) // block)) < LOST
    return np.where(np.repeat(lost, block)[: len(audio)], np.float32(0), audio)


CLEAN = Condition("clean")
CONDITIONS = (
    CLEAN,
    Condition("16 kHz source", 16_000),
    Condition("48 kHz source", 48_000),
    Condition("-20 dB", change=louder(-20)),
    Condition("+10 dB, clipped", change=louder(10)),
    Condition("telephone band", change=telephone),
    Condition("10 % of blocks lost", change=lossy),
)
