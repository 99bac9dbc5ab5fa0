"""Device rate -> model rate, block by block, without a seam, and soon: held back are half of the filter and less than a block."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import soxr

from detector.audio.source import Floats

PASS, STOP = 0.913, 1.0
"""Of the lower rate's half: up to the first a tone is kept, from the second on it is gone. soxr's "HQ" has the same."""
ATTENUATION_DB = 100.0
"""How far a tone beyond is down: below what 16 bits hold."""
BLOCK = 128
"""About so many samples are one product of matrices: few enough that the filter stays in the cache."""
MOST_WEIGHTS = 1 << 21
"""Of a matrix, 8 MB: 192 kHz to 22.05 kHz has a fifth of it. Rates with no small ratio have one beyond that: soxr takes those."""


class Resampler:
    """Streaming resampling: the blocks' outputs, put end to end, are the resampled whole.

    Output n is the sound at sample n * rate / to_rate. At 48 kHz it is given 11 ms after that at the latest: soxr, whose filters
    work in the frequency domain, holds back up to 38 ms.
    """

    def __init__(self, rate: int, to_rate: int) -> None:
        self._ratio = rate / to_rate
        self._polyphase = self._soxr = None
        if rate != to_rate and (filter_ := _design(rate, to_rate)):
            self._polyphase = _Polyphase(filter_)
        elif rate != to_rate:
            self._soxr = soxr.ResampleStream(rate, to_rate, 1, dtype="float32")

    def push(self, samples: Floats, last: bool = False) -> Floats:
        """The output that is ready after these samples; `last` empties the filter."""
        if self._polyphase:
            return self._polyphase.push(samples, last)
        return np.asarray(self._soxr.resample_chunk(samples, last=last), np.float32) if self._soxr else samples

    def needs(self, outputs: int) -> int:
        """How many samples more make so many outputs more; of soxr, at least."""
        return self._polyphase.needs(outputs) if self._polyphase else math.ceil(outputs * self._ratio)


@dataclass(frozen=True)
class _Filter:
    """A windowed sinc as products of matrices: `block` samples with `half` before and after them -> the outputs at them.

    weights: [half + block + half, outputs].
    """

    half: int
    block: int
    outputs: int
    weights: Floats


@functools.lru_cache(maxsize=16)
def _design(rate: int, to_rate: int) -> _Filter | None:
    """The Kaiser window's length and shape for ATTENUATION_DB (Kaiser 1974; Oppenheim and Schafer, Discrete-Time Signal Processing,
    7.6); None where the matrix would be too large."""
    lower = min(rate, to_rate) / rate  # in units of half the source's rate
    width = np.pi * (STOP - PASS) * lower
    half = math.ceil((ATTENUATION_DB - 7.95) / (2.285 * width) / 2) + 1
    divisor = math.gcd(rate, to_rate)
    up, down = to_rate // divisor, rate // divisor
    times = max(1, BLOCK // down)
    block, outputs = times * down, times * up
    if (block + 2 * half) * outputs > MOST_WEIGHTS:
        return None
    cut = lower * (PASS + STOP) / 2
    beta = 0.1102 * (ATTENUATION_DB - 8.7)
    t = np.arange(outputs) * down / up - (np.arange(block + 2 * half)[:, None] - half)
    window = np.i0(beta * np.sqrt(np.clip(1 - np.square(t / half), 0, None))) / np.i0(beta) * (np.abs(t) < half)
    return _Filter(half, block, outputs, (cut * np.sinc(cut * t) * window).astype(np.float32))


class _Polyphase:
    """A whole block at a time."""

    def __init__(self, filter_: _Filter) -> None:
        self._filter = filter_
        self._sound = np.zeros(filter_.half, np.float32)
        """What is not done with: from `half` samples before the next block."""

    def push(self, samples: Floats, last: bool) -> Floats:
        f = self._filter
        sound, due = np.concatenate([self._sound, samples]), None
        if last:
            due = math.floor((len(sound) - f.half) * f.outputs / f.block + 0.5)
            sound = np.concatenate([sound, np.zeros(f.half + f.block, np.float32)])
        blocks = max(0, len(sound) - 2 * f.half) // f.block
        self._sound = sound[blocks * f.block :]
        windows = np.ndarray((blocks, len(f.weights)), np.float32, sound, strides=(4 * f.block, 4))
        outputs: Floats = np.ascontiguousarray(windows) @ f.weights
        return outputs.ravel()[:due]

    def needs(self, outputs: int) -> int:
        f = self._filter
        return -(-outputs // f.outputs) * f.block + 2 * f.half - len(self._sound)
