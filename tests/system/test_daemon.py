from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import soundfile

from detector.model import Model

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"


def found(lines):
    """(label, onset, duration, score) of every finished event; the onset in samples stands in the id."""
    ended = [event for event in map(json.loads, lines) if event["phase"] == "end"]
    return [(event["label"], int(event["id"].rsplit("-", 1)[1]), event["duration_s"], event["score"]) for event in ended]


def scanned(lines, rate):
    events = map(json.loads, lines)
    return [
        (
            event["label"],
            pytest.approx(event["onset_s"] * rate, abs=3),
            pytest.approx(event["offset_s"] - event["onset_s"], abs=1e-3),
            pytest.approx(event["score"], abs=1e-4),
        )
        for event in events
    ]


def test_run_as_fast_as_it_goes_finds_what_scan_finds(urbandetect, shipped_model, tmp_path):
    labels = Model(shipped_model, "cpu").description.labels
    (tmp_path / "detector.toml").write_text("".join(f"[thresholds.{label}]\non = 0.2\n" for label in labels))
    scan = urbandetect("scan", STREET).stdout.splitlines()
    run = urbandetect("run", "--input", STREET, "--speed", "max").stdout.splitlines()
    assert scan
    assert found(run) == scanned(scan, 22050)


def test_run_at_real_time_finds_what_scan_finds(urbandetect, loudness_model, bursts, tmp_path):
    sound = bursts(3.03, (0.31, 0.9), (1.4, 1.55), (2.5, 3.03), rate=44100)
    soundfile.write(tmp_path / "short.flac", sound, 44100)
    begin = time.monotonic()
    run = urbandetect("run", "--model", loudness_model, "--input", "short.flac").stdout.splitlines()
    assert time.monotonic() - begin > 3
    scan = urbandetect("scan", "--model", loudness_model, "short.flac").stdout.splitlines()
    assert len(scan) == 3
    assert found(run) == scanned(scan, 8000)


def test_events_come_while_the_sound_of_a_pipe_goes_on(daemon, bursts, events):
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 1.0)))
    begun = run.wait_for(lambda line: '"phase":"start"' in line)
    run.say(bursts(1.0, (0.0, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line, after=begun)
    assert run.end() == 0
    start, end = events(run.lines)
    assert start["id"] == end["id"]
    assert (end["seq"], end["duration_s"]) == (2, 1.3)


def test_a_pipe_that_stands_still_ends_its_events_and_is_heard_again_in_a_new_session_when_it_goes_on(daemon, bursts, events):
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 1.0)))
    ended = run.wait_for(lambda line: '"phase":"end"' in line)
    run.wait_for_error("nothing comes through the pipe")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line, after=ended + 1)
    start, end, *later = events(run.lines)
    assert (end["id"], end["duration_s"]) == (start["id"], 0.8)
    assert [event["session"] != start["session"] for event in later] == [True, True]
    assert [int(event["id"].rsplit("-", 1)[1]) for event in later] == [9600, 9600]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_ends_open_events_and_the_program_within_two_seconds(daemon, bursts, events, number):
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 1.0)))
    run.wait_for(lambda line: '"phase":"start"' in line)
    begin = time.monotonic()
    run.send(number)
    assert run.process.wait(10) == 0
    assert time.monotonic() - begin < 2
    assert run.end() == 0
    assert [event["phase"] for event in events(run.lines)] == ["start", "end"]


def test_a_lasting_event_is_told_again_under_its_id(daemon, bursts, events, tmp_path):
    (tmp_path / "detector.toml").write_text("[events]\nupdate_s = 0.5")
    run = daemon("--input", "-")
    run.say(bursts(2.0, (0.0, 1.5)))
    assert run.end() == 0
    told = events(run.lines)
    assert [event["phase"] for event in told] == ["start", "update", "update", "update", "end"]
    assert len({event["id"] for event in told}) == 1


def test_several_sources_are_heard_together(daemon, bursts, events, tmp_path):
    for name in ("north", "south"):
        soundfile.write(tmp_path / f"{name}.wav", bursts(2.0, (0.5, 1.0)) * (1 if name == "north" else 0.7), 8000)
    (tmp_path / "detector.toml").write_text(
        "".join(f"[[source]]\nname = '{name}'\ninput = '{name}.wav'\n" for name in ("north", "south"))
    )
    run = daemon("--speed", "max")
    assert run.end() == 0
    ended = {event["source"]: event for event in events(run.lines) if event["phase"] == "end"}
    assert (ended["north"]["score"], ended["south"]["score"]) == (pytest.approx(0.9, abs=1e-3), pytest.approx(0.63, abs=1e-3))
    assert ended["north"]["session"] != ended["south"]["session"]
