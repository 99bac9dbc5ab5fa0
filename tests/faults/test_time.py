"""The clock is set, the summer begins, the computer sleeps: an event's times stay those of its sound."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest


def moments(event):
    return [datetime.fromisoformat(event[key]) for key in ("start", "end")]


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_16_a_clock_set_by_an_hour_leaves_the_event_under_way_whole_and_the_next_has_the_new_time(
    daemon, bursts, events, clock, step_s
):
    run = daemon("--input", "-", env=clock.env)
    run.say(bursts(1.0, (0.2, 1.0)))
    run.wait_for(lambda line: '"phase":"start"' in line)
    clock.step(step_s)
    run.say(bursts(2.0, (0.0, 0.4), (1.0, 1.5)))
    run.wait_for(lambda line: '"phase":"end"' in line, after=run.wait_for(lambda line: '"phase":"end"' in line) + 1)
    first, ended, second, _ = events(run.lines)
    assert ended["start"] == first["start"]
    begin, end = moments(ended)
    assert (end - begin).total_seconds() == ended["duration_s"] == pytest.approx(1.2, abs=0.01)
    after = datetime.fromisoformat(second["start"]) - begin
    assert after.total_seconds() == pytest.approx(step_s, abs=10)


def test_16_the_hour_of_the_clocks_change_is_nothing_to_utc(daemon, bursts, events, clock):
    change = datetime(2027, 10, 31, 1, 0, tzinfo=UTC)  # 3:00 becomes 2:00 in Berlin
    clock.step(round(change.timestamp() - time.time()) - 1)
    run = daemon("--input", "-", env=clock.env | {"TZ": "Europe/Berlin"})
    run.say(bursts(3.0, (0.2, 0.6)))
    time.sleep(2.5)
    run.say(bursts(1.0, (0.2, 0.6)))
    run.wait_for(lambda line: '"phase":"end"' in line, after=run.wait_for(lambda line: '"phase":"end"' in line) + 1)
    starts = [datetime.fromisoformat(event["start"]) for event in events(run.lines) if event["phase"] == "start"]
    assert all(event["start"].endswith("Z") for event in events(run.lines))
    assert abs(starts[1] - starts[0] - timedelta(seconds=3)) < timedelta(milliseconds=50)
    assert abs(starts[0] - change) < timedelta(seconds=10)


def test_16_a_computer_that_slept_ends_the_event_where_it_fell_asleep_and_hears_on_in_a_new_session(
    microphone, daemon, bursts, events, clock
):
    microphone.hears(bursts(60.0, (0.5, 59.0), rate=48000))
    run = daemon("--device", "hw:1", env=microphone.env | clock.env)
    run.wait_for(lambda line: '"phase":"start"' in line)
    time.sleep(0.5)
    clock.sleep(3600)
    run.wait_for(lambda line: '"phase":"start"' in line, after=run.wait_for(lambda line: '"phase":"end"' in line))
    first, ended, second = events(run.lines)[:3]
    assert ended["duration_s"] < 5
    assert second["session"] != first["session"]
    assert datetime.fromisoformat(second["start"]) - datetime.fromisoformat(first["start"]) > timedelta(hours=1)
    assert "this computer slept for 3600" in run.errors.read_text()
