"""Frequency weighting A as a streaming filter: the curve of the standard up to the Nyquist frequency, at any rate."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats

Doubles = NDArray[np.float64]

POLES_HZ = (20.598997, 107.65265, 737.86223, 12194.217)
"""f1 to f4 of IEC 61672-1:2013, annex E; the first and the last are double."""
ORDER = 6
ZEROS = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
"""One for each pole: at 0 Hz, or none."""
TAPS = 32
"""Of the filter that makes up for what the poles lack near the Nyquist frequency: up to 0.45 of the rate, more change 0.01 dB."""
GRID_S = 1.0
"""Its gain is sampled as finely as this many seconds of sound resolve it."""
MOST_BLOCKS = 1 << 20
"""In one push: far beyond the longest."""
BLOCK = 32
"""Samples of one product of matrices: few enough that they stay in the cache, many enough that the products are worth it."""


def a_weighting(frequency_hz: NDArray[np.floating]) -> Doubles:
    """Gain of weighting A, 1 at 1 kHz, as a factor of the amplitude (IEC 61672-1:2013, annex E)."""
    f1, f2, f3, f4 = POLES_HZ
    s = np.square(np.append(frequency_hz, 1000.0))
    curve = s**2 / ((s + f1**2) * np.sqrt((s + f2**2) * (s + f3**2)) * (s + f4**2))
    gain: Doubles = curve[:-1] / curve[-1]
    return gain


@dataclass(frozen=True)
class _Filter:
    """Taps, then a pole after the other, each with its zero; of minimum phase as the analogue filter: no delay to make up for."""

    taps: Doubles
    poles: Doubles


@functools.lru_cache(maxsize=8)
def _design(rate: int) -> _Filter:
    """The poles of the standard as exp(-2 pi f / rate), its four zeros at 0 Hz, and taps for what is left of the gain.

    Those are found from the Fourier transform of the gain's logarithm, the cepstrum, folded to the causal half (Oppenheim and
    Schafer, Discrete-Time Signal Processing, the Hilbert transform relations).
    """
    f1, f2, f3, f4 = POLES_HZ
    poles = np.exp(-2 * np.pi * np.array([f1, f1, f2, f3, f4, f4]) / rate)
    size = 1 << round(GRID_S * rate).bit_length()
    f = np.fft.rfftfreq(size, 1 / rate)
    f[0] = f[1]
    delay = np.exp(-2j * np.pi * f / rate)
    given = np.prod([np.abs((1 - zero * delay) / (1 - pole * delay)) for zero, pole in zip(ZEROS, poles, strict=True)], axis=0)
    cepstrum = np.fft.irfft(np.log(a_weighting(f) / given), size)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    taps = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), size)[:TAPS]
    return _Filter(taps, poles)


def _run(poles: Doubles, samples: Doubles, state: Doubles) -> tuple[Doubles, Doubles]:
    """The poles and zeros, many signals side by side: samples [n, signals], state [ORDER, signals] -> outputs, state after."""
    outputs, state = samples.copy(), state.copy()
    for x in outputs:
        for i, (pole, zero) in enumerate(zip(poles, ZEROS, strict=True)):
            y = x + state[i]
            state[i] = pole * y - zero * x
            x[:] = y
    return outputs, state


@dataclass(frozen=True)
class _Step:
    """A BLOCK of the filter as products. of_samples: [TAPS - 1 + BLOCK, BLOCK + ORDER], from the samples and those before them to
    the outputs and the new state; of_state: [ORDER, BLOCK], from the state to the outputs; onward: [ORDER, ORDER] each, from the
    state to that 1, 2, 4 ... blocks later."""

    of_samples: Doubles
    of_state: Doubles
    onward: tuple[Doubles, ...]


@functools.lru_cache(maxsize=8)
def _step(rate: int) -> _Step:
    filter_ = _design(rate)
    past = TAPS - 1
    ones = np.eye(past + BLOCK)
    filtered = np.stack([filter_.taps[::-1] @ ones[at : at + TAPS] for at in range(BLOCK)])
    outputs, states = _run(filter_.poles, filtered, np.zeros((ORDER, past + BLOCK)))
    of_state, onward = _run(filter_.poles, np.zeros((BLOCK, ORDER)), np.eye(ORDER))
    powers = tuple(np.linalg.matrix_power(onward.T, 1 << i) for i in range(MOST_BLOCKS.bit_length()))
    return _Step(np.vstack([outputs, states]).T.copy(), of_state.T.copy(), powers)


class AWeighting:
    """Streaming weighting A: the blocks' outputs, put end to end, are those of the whole, sample by sample.

    Before its first sample it has always heard that value: the offset of a sound card is no bang.
    """

    def __init__(self, rate: int) -> None:
        self._rate, self._taps = rate, _design(rate).taps
        self._begun = np.zeros(0)
        """The block that is not full yet, after the TAPS - 1 samples before it; empty before the first sample."""
        self._state = np.zeros(ORDER)
        """Before that block."""

    def push(self, samples: Floats) -> Doubles:
        """As many weighted samples as these, and of the same moments."""
        if not len(samples):
            return np.zeros(0)
        if not len(self._begun):
            self._begun = np.full(TAPS - 1, samples[0], np.float64)
            self._state[0] = -self._begun[0] * self._taps.sum()  # so that nothing comes out of the first zero
        step, before, told = _step(self._rate), TAPS - 1, len(self._begun) - (TAPS - 1)
        full, rest = divmod(told + len(samples), BLOCK)
        blocks = full + (rest > 0)
        sound = np.concatenate([self._begun, samples, np.zeros(blocks * BLOCK - told - len(samples))])
        windows = np.ndarray((blocks, before + BLOCK), np.float64, sound, strides=(sound.itemsize * BLOCK, sound.itemsize))
        given = np.ascontiguousarray(windows) @ step.of_samples
        states = np.vstack([self._state, given[:, BLOCK:]])
        for i in range(blocks.bit_length()):  # with those before it: of 1, of 2, of 4 ... (Hillis and Steele 1986)
            states[1 << i :] += states[: -(1 << i)] @ step.onward[i]
        self._state, self._begun = states[full].copy(), sound[full * BLOCK : full * BLOCK + before + rest].copy()
        outputs: Doubles = given[:, :BLOCK] + states[:-1] @ step.of_state
        return outputs.ravel()[told : full * BLOCK + rest]
