from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio.resample import Resampler

ODD = 44056
"""Has no small ratio to any other."""
RATES = [8000, 16000, 22050, 44100, 48000, 96000, ODD]


def resampled(samples, rate, to_rate, sizes):
    stream = Resampler(rate, to_rate)
    blocks = np.split(samples, np.cumsum(sizes))
    return np.concatenate([*(stream.push(block) for block in blocks), stream.push(np.zeros(0, np.float32), last=True)])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(RATES), st.sampled_from(RATES), st.lists(st.integers(0, 3000), max_size=8))
def test_any_split_into_blocks_put_end_to_end_is_the_whole(rate, to_rate, sizes):
    samples = np.random.default_rng(1).uniform(-1, 1, 8000).astype(np.float32)
    heard = resampled(samples, rate, to_rate, sizes)
    whole = Resampler(rate, to_rate).push(samples, last=True)
    assert len(heard) == len(whole) == round(len(samples) * to_rate / rate)
    np.testing.assert_allclose(heard, whole, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(RATES[:-1]), st.sampled_from(RATES[:-1]), st.lists(st.integers(1, 9000), min_size=1, max_size=6))
def test_it_says_to_the_sample_how_many_make_an_output(rate, to_rate, wanted):
    stream = Resampler(rate, to_rate)
    for outputs in wanted:
        missing = stream.needs(outputs)
        got = len(stream.push(np.zeros(missing - 1, np.float32)))
        assert got < outputs <= got + len(stream.push(np.zeros(1, np.float32)))


@pytest.mark.parametrize("to_rate", [22050, 48000])
@pytest.mark.parametrize("rate", RATES)
def test_sound_that_both_rates_hold_is_the_same_sound(rate, to_rate):
    draw = np.random.default_rng(2)
    tones = list(zip(draw.uniform(20, 0.45 * min(rate, to_rate), 30), draw.uniform(0, 2 * np.pi, 30), strict=True))

    def sound(at_rate):
        t = np.arange(at_rate // 2) / at_rate
        return (sum(np.sin(2 * np.pi * hz * t + phase) for hz, phase in tones) / 30).astype(np.float32)

    heard, edge = resampled(sound(rate), rate, to_rate, [480] * 20), to_rate // 20
    np.testing.assert_allclose(heard[edge:-edge], sound(to_rate)[edge:-edge], atol=1e-3 if ODD in (rate, to_rate) else 5e-6)


@pytest.mark.parametrize("rate", [44100, 48000, 96000, 192000])
def test_a_tone_that_the_lower_rate_cannot_hold_is_gone(rate):
    tone = np.sin(2 * np.pi * 11100 * np.arange(rate) / rate).astype(np.float32)
    heard = resampled(tone, rate, 22050, [4800])[2000:-2000]
    assert np.sqrt(np.mean(np.square(heard))) < 2e-5


@pytest.mark.parametrize(("rate", "within_ms"), [(8000, 30), (16000, 25), (44100, 7), (48000, 11), (96000, 11)])
def test_nothing_is_held_back_for_longer_than_the_filter_and_its_block(rate, within_ms):
    stream, fed, given = Resampler(rate, 22050), 0, 0
    while fed < rate:
        fed += rate // 1000
        given += len(stream.push(np.zeros(rate // 1000, np.float32)))
        assert fed / rate - given / 22050 < within_ms / 1000


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
def test_a_tone_stays_at_its_time(rate):
    time = np.arange(2 * rate) / rate
    tone = (np.sin(2 * np.pi * 1000 * time) * (time >= 1)).astype(np.float32)
    heard = resampled(tone, rate, 22050, [480] * 20)
    expected = np.sin(2 * np.pi * 1000 * np.arange(2 * 22050) / 22050)
    np.testing.assert_allclose(heard[23000:43000], expected[23000:43000], atol=1e-3)
    assert np.abs(heard[: 22050 - 100]).max() < 0.02
