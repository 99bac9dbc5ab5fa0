from __future__ import annotations

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio.resample import Resampler

RATES = [8000, 16000, 22050, 44100, 48000, 96000]


def resampled(samples, rate, to_rate, sizes):
    stream = Resampler(rate, to_rate)
    blocks = np.split(samples, np.cumsum(sizes))
    return np.concatenate([*(stream.push(block) for block in blocks), stream.push(np.zeros(0, np.float32), last=True)])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(RATES), st.sampled_from(RATES), st.lists(st.integers(0, 3000), max_size=8))
def test_any_split_into_blocks_put_end_to_end_is_the_whole(rate, to_rate, sizes):
    samples = np.random.default_rng(1).uniform(-1, 1, 8000).astype(np.float32)
    heard = resampled(samples, rate, to_rate, sizes)
    assert abs(len(heard) - len(samples) * to_rate / rate) <= 1
    whole = samples if rate == to_rate else soxr.resample(samples, rate, to_rate)
    np.testing.assert_allclose(heard, whole[: len(heard)], atol=2e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
def test_a_tone_stays_at_its_time(rate):
    time = np.arange(2 * rate) / rate
    tone = (np.sin(2 * np.pi * 1000 * time) * (time >= 1)).astype(np.float32)
    heard = resampled(tone, rate, 22050, [480] * 20)
    expected = np.sin(2 * np.pi * 1000 * np.arange(2 * 22050) / 22050)
    np.testing.assert_allclose(heard[23000:43000], expected[23000:43000], atol=1e-3)
    assert np.abs(heard[: 22050 - 100]).max() < 0.02
