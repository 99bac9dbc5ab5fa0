"""Weighting A against the table of the standard, with tones, at the rates of sound cards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio.weighting import AWeighting, a_weighting

CLASS_1 = [
    (10, -70.4, -math.inf, 3.0),
    (12.5, -63.4, -math.inf, 2.5),
    (16, -56.7, -4.0, 2.0),
    (20, -50.5, -2.0, 2.0),
    (25, -44.7, -1.5, 2.0),
    (31.5, -39.4, -1.5, 1.5),
    (40, -34.6, -1.0, 1.0),
    (50, -30.2, -1.0, 1.0),
    (63, -26.2, -1.0, 1.0),
    (80, -22.5, -1.0, 1.0),
    (100, -19.1, -1.0, 1.0),
    (125, -16.1, -1.0, 1.0),
    (160, -13.4, -1.0, 1.0),
    (200, -10.9, -1.0, 1.0),
    (250, -8.6, -1.0, 1.0),
    (315, -6.6, -1.0, 1.0),
    (400, -4.8, -1.0, 1.0),
    (500, -3.2, -1.0, 1.0),
    (630, -1.9, -1.0, 1.0),
    (800, -0.8, -1.0, 1.0),
    (1000, 0.0, -0.7, 0.7),
    (1250, 0.6, -1.0, 1.0),
    (1600, 1.0, -1.0, 1.0),
    (2000, 1.2, -1.0, 1.0),
    (2500, 1.3, -1.0, 1.0),
    (3150, 1.2, -1.0, 1.0),
    (4000, 1.0, -1.0, 1.0),
    (5000, 0.5, -1.5, 1.5),
    (6300, -0.1, -2.0, 1.5),
    (8000, -1.1, -2.5, 1.5),
    (10000, -2.5, -3.0, 2.0),
    (12500, -4.3, -5.0, 2.0),
    (16000, -6.6, -16.0, 2.5),
    (20000, -9.3, -math.inf, 3.0),
]
"""IEC 61672-1:2013, table 3: nominal frequency in Hz, weighting A in dB, acceptance limits of class 1 in dB."""
OURS_DB = 0.1
"""How near our filter is: the table's own rounding is half of it, so that nearly all of the limits is left to the microphone."""


def exact_hz(nominal_hz):
    """The table's frequencies are 1000 Hz times tenths of a decade, named by round numbers."""
    return 1000 * 10 ** (round(10 * math.log10(nominal_hz / 1000)) / 10)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_tones_come_out_within_class_1_up_to_the_nyquist_frequency(rate):
    settle, length = rate // 4, rate
    measured = {}
    for nominal_hz, a_db, low_db, high_db in CLASS_1:
        hz = exact_hz(nominal_hz)
        if hz > 0.998 * rate / 2:
            continue
        tone = np.sin(2 * np.pi * hz * np.arange(settle + length) / rate).astype(np.float32)
        window = np.hanning(length)
        heard = AWeighting(rate).push(tone)[settle:]
        measured[nominal_hz] = 10 * np.log10(np.sum(window * heard**2) / np.sum(window * tone[settle:].astype(float) ** 2))
        error_db = measured[nominal_hz] - a_db
        assert low_db <= error_db <= high_db, nominal_hz
        assert abs(error_db) <= OURS_DB, nominal_hz
    assert {10, 31.5, 1000} < set(measured)
    assert (8000 in measured) == (rate >= 16000)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000, 192000])
def test_between_the_table_s_frequencies_the_filter_follows_the_analogue_curve(rate):
    size = 1 << 20
    hz = np.fft.rfftfreq(size, 1 / rate)[1:]
    click = np.zeros(rate, np.float32)
    click[1] = 1  # after a sample of nothing, which is what the filter takes for its past
    gain = np.abs(np.fft.rfft(AWeighting(rate).push(click), size))[1:]
    inside = (hz >= 20) & (hz <= 0.995 * rate / 2)
    assert np.abs(20 * np.log10(gain[inside] / a_weighting(hz[inside]))).max() < OURS_DB
    assert gain[hz < 5].max() < 10 ** (-90 / 20)  # wind and rumble below hearing: not lower than the truth, but harmless


def test_the_curve_is_1_at_1_khz_and_that_of_the_table_at_its_frequencies():
    assert a_weighting(np.array([1000.0])) == pytest.approx(1, abs=1e-12)
    curve = 20 * np.log10(a_weighting(np.array([exact_hz(row[0]) for row in CLASS_1])))
    assert curve == pytest.approx([row[1] for row in CLASS_1], abs=0.051)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8000, 22050, 48000]), st.lists(st.integers(0, 20000), max_size=8))
def test_any_split_of_the_sound_into_blocks_gives_the_same_samples(rate, sizes):
    sound = np.random.default_rng(1).normal(0, 0.2, 60000).astype(np.float32)
    streaming = AWeighting(rate)
    parts = [streaming.push(block) for block in np.split(sound, np.cumsum(sizes))]
    whole = AWeighting(rate).push(sound)
    assert [len(part) for part in parts] == [len(block) for block in np.split(sound, np.cumsum(sizes))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-12)


def test_a_click_is_where_it_was_and_nothing_comes_before_it():
    click = np.zeros(48000, np.float32)
    click[24000] = 1.0
    heard = np.square(AWeighting(48000).push(click))
    assert heard[:24000].max() < 1e-20
    assert heard[24000:24048].sum() > 0.95 * heard.sum()


def test_the_offset_of_a_sound_card_is_not_heard():
    heard = AWeighting(48000).push(np.full(48000, 0.3, np.float32))
    assert np.abs(heard).max() < 0.3 * 10 ** (-110 / 20)


def test_an_empty_block_is_no_sound():
    assert len(AWeighting(48000).push(np.zeros(0, np.float32))) == 0
