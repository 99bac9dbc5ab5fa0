"""Frequency weighting A as a streaming filter: the curve of the standard up to the Nyquist frequency, at any rate."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats

Doubles = NDArray[np.float64]

POLES_HZ = (20.598997, 107.65265, 737.86223, 12194.217)
"""f1 to f4 of IEC 61672-1:2013, annex E; the first and the last are double."""
LENGTH_S = 0.1
"""Of the filter: what its two slowest poles still answer after that is 110 dB down, and so is its gain for a constant."""


def a_weighting(frequency_hz: NDArray[np.floating]) -> Doubles:
    """Gain of weighting A, 1 at 1 kHz, as a factor of the amplitude (IEC 61672-1:2013, annex E)."""
    f1, f2, f3, f4 = POLES_HZ
    s = np.square(np.append(frequency_hz, 1000.0))
    curve = s**2 / ((s + f1**2) * np.sqrt((s + f2**2) * (s + f3**2)) * (s + f4**2))
    gain: Doubles = curve[:-1] / curve[-1]
    return gain


@functools.lru_cache(maxsize=8)
def a_filter(rate: int) -> Doubles:
    """The taps of an FIR filter with the gain of `a_weighting`, of minimum phase as the analogue one: no delay to make up for.

    The gain is sampled on a grid and its logarithm's Fourier transform, the cepstrum, folded to the causal half (Oppenheim and
    Schafer, Discrete-Time Signal Processing, the Hilbert transform relations). The four zeros at 0 Hz, where no logarithm is, are
    divided out before and multiplied in after.
    """
    taps = round(LENGTH_S * rate)
    size = 1 << (8 * taps).bit_length()  # long enough for the cepstrum, too, to have died away
    f = np.fft.rfftfreq(size, 1 / rate)
    f[0] = f[1] / 4
    cepstrum = np.fft.irfft(np.log(a_weighting(f) / (2 * np.sin(np.pi * f / rate)) ** 4), size)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    rest = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), size)
    answer = np.convolve(rest, (1, -4, 6, -4, 1))[:taps]
    fade = taps // 4
    answer[-fade:] *= np.cos(np.linspace(0, np.pi / 2, fade)) ** 2
    answer.flags.writeable = False
    return answer


class AWeighting:
    """Streaming weighting A by overlap-save: the blocks' outputs, put end to end, are those of the whole, sample by sample.

    Before its first sample it has always heard that value: the offset of a sound card is no bang.
    """

    def __init__(self, rate: int) -> None:
        self._taps = a_filter(rate)
        self._past: Doubles | None = None
        self._gains: dict[int, NDArray[np.complex128]] = {}

    def push(self, samples: Floats) -> Doubles:
        """As many weighted samples as these, and of the same moments."""
        if not len(samples):
            return np.zeros(0)
        keep = len(self._taps) - 1
        past = np.full(keep, samples[0], np.float64) if self._past is None else self._past
        sound = np.concatenate([past, samples])
        self._past = sound[len(samples) :]
        pieces = []
        for at in range(0, len(samples), keep):
            piece = sound[at : min(at + 2 * keep, len(sound))]
            size = 1 << (len(piece) - 1).bit_length()
            size = next(n for n in (size * 5 // 8, size * 3 // 4, size) if n >= len(piece))
            if size not in self._gains:
                self._gains[size] = np.fft.rfft(self._taps, size)
            pieces.append(np.fft.irfft(np.fft.rfft(piece, size) * self._gains[size], size)[keep : len(piece)])
        return np.concatenate(pieces)
