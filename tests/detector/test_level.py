from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio.level import FAST_S, SILENCE_DBFS, Meter, dbfs, pressure_level
from detector.audio.source import Block
from detector.audio.weighting import AWeighting

RATE = 48000


def tone(seconds, hz=1000.0, amplitude=1.0, rate=RATE):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def levels(samples, interval_s, rate=RATE, sizes=()):
    meter, first, found = Meter(rate, interval_s), 0, []
    for block in np.split(samples, np.cumsum(sizes)):
        found += meter.hear(Block(block, first, 0.0))[1]
        first += len(block)
    return found


def test_a_full_scale_sine_is_0_dbfs():
    sine = np.sin(2 * np.pi * np.arange(48000) * 1000 / 48000)
    assert dbfs(float(np.mean(sine**2))) == pytest.approx(0, abs=1e-9)


def test_half_the_amplitude_is_6_db_less():
    assert dbfs(0.5 / 4) == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("mean_square", [0.0, 1e-300, 5e-324])
def test_silence_is_a_number_json_can_hold(mean_square):
    assert dbfs(mean_square) == SILENCE_DBFS == -120


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000, 96000])
def test_a_steady_tone_of_1_khz_has_one_level_whatever_is_asked_of_it(rate):
    (_, level) = levels(tone(2, amplitude=0.1, rate=rate), 1.0, rate)
    assert (level.dbfs, level.dbfs_a) == (pytest.approx(-20, abs=0.001), pytest.approx(-20, abs=0.02))
    assert [level.fast_max, *level.exceeded] == pytest.approx([-20] * 4, abs=0.1)
    assert (level.end, level.interval_s) == (2 * rate, 1.0)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([16000, 22050, 48000]), st.floats(0.05, 1.1), st.lists(st.integers(0, 30000), max_size=8))
def test_blocks_of_any_size_give_the_levels_of_the_whole(rate, interval_s, sizes):
    rng = np.random.default_rng(3)
    sound = (rng.normal(0, 0.1, 100_000) * np.repeat(rng.uniform(0, 1, 100), 1000)).astype(np.float32)
    whole, parts = levels(sound, interval_s, rate), levels(sound, interval_s, rate, sizes)
    count = round(interval_s * rate)
    assert [level.end for level in parts] == [level.end for level in whole] == list(range(count, 100_001, count))
    for a, b in zip(parts, whole, strict=True):
        assert [a.dbfs, a.dbfs_a, a.fast_max, *(a.exceeded or ())] == pytest.approx(
            [b.dbfs, b.dbfs_a, b.fast_max, *(b.exceeded or ())], abs=1e-6
        )


def test_the_level_of_an_interval_is_that_of_its_own_samples():
    sound = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    weighted = AWeighting(RATE).push(sound)
    for number, level in enumerate(levels(sound, 0.5)):
        mine = slice(number * RATE // 2, (number + 1) * RATE // 2)
        assert level.dbfs == pytest.approx(dbfs(float(np.mean(sound[mine].astype(float) ** 2))), abs=1e-9)
        assert level.dbfs_a == pytest.approx(dbfs(float(np.mean(weighted[mine] ** 2))), abs=1e-9)


@pytest.mark.parametrize("burst_ms", [1000, 500, 200, 100, 50, 20, 10, 5, 2, 1])
def test_the_highest_f_weighted_level_of_a_burst_is_that_of_the_standard(burst_ms):
    """IEC 61672-1:2013, 5.9: 10 lg(1 - exp(-T / 0.125 s)) below the steady 4 kHz tone; its table 4 allows 0.5 dB or more."""
    steady = levels(tone(2, 4000), 2.0)[0].fast_max
    sound = np.concatenate([np.zeros(RATE, np.float32), tone(burst_ms / 1000, 4000), np.zeros(2 * RATE, np.float32)])
    (level,) = levels(sound[: 2 * RATE + RATE // 2], 2.5)
    assert level.fast_max - steady == pytest.approx(10 * math.log10(1 - math.exp(-burst_ms / 1000 / FAST_S)), abs=0.1)


def test_a_tone_that_ends_dies_away_by_35_db_in_a_second():
    """IEC 61672-1:2013, 5.8: with time weighting F by 34.7 dB a second, at least 31.0 and at most 38.5."""
    found = levels(np.concatenate([tone(1), np.zeros(2 * RATE, np.float32)]), 0.1)
    assert found[14].fast_max - found[24].fast_max == pytest.approx(34.7, abs=0.3)


def test_percentiles_are_the_levels_exceeded_for_so_much_of_the_time():
    loud, soft = tone(3, amplitude=0.5), tone(7, amplitude=0.005)
    level = levels(np.concatenate([soft, loud]), 10.0)[0]
    l10, l50, l90 = level.exceeded
    assert l10 == pytest.approx(-6, abs=0.2)
    assert [l50, l90] == pytest.approx([-46, -46], abs=0.2)
    assert level.dbfs_a == pytest.approx(10 * math.log10(0.3 * 0.25), abs=0.1)


def test_a_gap_only_makes_an_interval_last_longer_and_is_no_bang():
    hum = np.full(RATE, 0.2, np.float32)
    meter = Meter(RATE, 2.0)
    assert meter.hear(Block(hum, 0, 0.0))[1] == []
    (level,) = meter.hear(Block(-hum, 5 * RATE, 0.0))[1]
    assert (level.end, level.interval_s) == (6 * RATE, 2.0)
    assert level.dbfs_a < -100


def test_without_a_calibration_only_relative_levels_are_told():
    level = levels(tone(1, amplitude=0.1), 1.0)[0]
    relative = {"interval_s": 1.0, "dbfs": -20.0, "dbfs_a": -20.0}
    assert level.told(None) == relative | dict.fromkeys(("laeq", "lafmax", "l10", "l50", "l90"))
    assert level.told(114.0) == relative | dict.fromkeys(("laeq", "lafmax", "l10", "l50", "l90"), 94.0)
    assert pressure_level(-20.0, None) is None


def test_percentiles_wait_until_the_time_weighting_has_settled():
    first, second = levels(tone(1.2), 0.6)
    assert first.exceeded is None
    assert first.told(94.0)["l90"] is None
    assert second.exceeded == pytest.approx((0, 0, 0), abs=0.1)
