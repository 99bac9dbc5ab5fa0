from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio import clock as clock_module
from detector.audio.clock import LEAK, SampleClock
from detector.event import timestamp

RATE, BLOCK = 48_000, 960
WALL_S = 1_800_000_000.0


@pytest.fixture(autouse=True, scope="module")
def still_time():
    """Monotonic time stands at 0 while it is WALL_S in the world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module.time, "monotonic", lambda: 0.0)
        patch.setattr(clock_module.time, "time", lambda: WALL_S)
        yield


def late_s(clock, index, truth_s):
    """How much later than the truth the clock puts a sample."""
    return (clock.utc(index / RATE) - datetime.fromtimestamp(WALL_S + truth_s, UTC)).total_seconds()


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
def test_late_arrivals_never_move_the_estimate_later_than_the_earliest_one_and_the_leak(delays):
    clock = SampleClock(RATE)
    for number, delay in enumerate(delays, 1):
        clock.observe(number * BLOCK, 100 + number * BLOCK / RATE + delay)
        leak = LEAK * number * BLOCK / RATE
        late = late_s(clock, 0, 100)
        assert -2e-6 <= late <= min(delays[:number]) + leak + 2e-6


@pytest.mark.parametrize("ppm", [-100, -20, 20, 100])
def test_a_drifting_card_is_followed(ppm):
    clock, second_s = SampleClock(RATE), 1 + ppm * 1e-6
    for second in range(1, 3601):
        clock.observe(second * RATE, second * second_s)
    assert abs(late_s(clock, 3600 * RATE, 3600 * second_s)) < 1e-3


def test_a_step_of_the_system_clock_is_followed(monkeypatch):
    clock = SampleClock(RATE)
    clock.observe(RATE, 1.0)
    before = clock.utc(0.5)
    monkeypatch.setattr(clock_module.time, "time", lambda: WALL_S + 3600)
    assert clock.utc(0.5) - before == timedelta(hours=1)


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(1000, 1, 1)))
def test_utc_is_written_with_milliseconds_and_z(moment):
    text = timestamp(moment)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert moment - datetime.fromisoformat(text) < timedelta(milliseconds=1)


@given(
    ppm=st.floats(-150, 150),
    minutes=st.integers(12, 90),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_the_cards_drift_is_known_to_3_ppm_after_ten_minutes_however_late_its_blocks_come(ppm, minutes, seed):
    dice = np.random.default_rng(seed)
    clock = SampleClock(48_000)
    for second in range(1, 60 * minutes + 1):
        if second <= 600:
            assert clock.drift_ppm is None
        late_s = dice.exponential(0.005)
        clock.observe(second * 48_000, 1000.0 + second / (1 + ppm * 1e-6) + late_s)
    assert clock.drift_ppm == pytest.approx(ppm, abs=3)
