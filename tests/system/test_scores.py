"""Scores of a real daemon on disk: what it heard, why something was told, and thresholds that keep their promise."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from detector.model import Model
from detector.score_file import logs, read, stretches
from trainer.tuning import scores_of_file

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"


@pytest.fixture
def logging_on(tmp_path):
    """Settings with a log of scores, and more lines; the folder of it."""

    def write(more=""):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n[log_scores]\nfolder = "{tmp_path}/logs"\n{more}')
        return tmp_path / "logs"

    return write


def parts_of(folder):
    return [(about, part) for about, parts in map(read, logs([folder])) for part in parts]


def scores(parts):
    return np.concatenate([part.numbers(len(about.labels))[0] for about, part in parts])


def logit(values):
    wide = np.clip(values.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(wide / (1 - wide))


def ended(lines):
    return [event for event in map(json.loads, lines) if event["phase"] == "end"]


def test_the_log_s_rows_are_the_scores_of_the_same_recording_within_what_the_log_resolves(urbandetect, shipped_model, logging_on):
    folder = logging_on()
    events = ended(urbandetect("run", "--input", STREET, "--speed", "max").stdout.splitlines())
    parts = parts_of(folder)
    offline = scores_of_file(Model(shipped_model, "cpu"), STREET)
    assert len(list(stretches(parts))) == 1
    assert parts[0][1].first == 0
    assert scores(parts).shape == offline.shape
    assert np.abs(logit(scores(parts)) - logit(offline)).max() < 1 / 128 + 0.003
    told = [(each.label, each.onset, each.score) for _, part in parts for each in part.told if each.phase == "end"]
    assert told == [(event["label"], int(event["id"].rsplit("-", 1)[1]), event["score"]) for event in events]
    assert told


def test_killed_mid_way_all_but_the_last_half_minute_is_read_and_it_is_right(start, loudness_model, logging_on, tmp_path):
    folder = logging_on()
    sound = np.repeat(np.random.default_rng(1).uniform(0, 0.4, 72_000), 800).astype(np.float32)
    soundfile.write(tmp_path / "hours.wav", sound, 8000)
    run = start("urbandetect", "run", "--model", loudness_model, "--input", "hours.wav", "--speed", "max")
    deadline_s = time.monotonic() + 15
    while sum(file.stat().st_size for file in logs([folder])) < 8000:
        assert time.monotonic() < deadline_s, run.errors.read_text()
        time.sleep(0.005)
    run.send(signal.SIGKILL)
    run.process.wait()
    parts = parts_of(folder)
    assert len(list(stretches(parts))) == 1
    kept = scores(parts)[:, 0]
    assert 300 <= len(kept) < 72_000, "killed too late to tell"
    peaks = np.abs(soundfile.read(tmp_path / "hours.wav")[0]).reshape(-1, 800).max(1)
    assert np.abs(kept - peaks[: len(kept)]).max() < 0.003


def test_explain_shows_an_event_by_the_id_it_was_told_under(urbandetect, logging_on, tmp_path):
    logging_on()
    event = ended(urbandetect("run", "--input", STREET, "--speed", "max").stdout.splitlines())[0]
    told = urbandetect("explain", event["id"], "--plot", "why.svg", env=None)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{event['label']}, mic1 on street, urban")
    assert f"onset   {event['start']}" in told.stdout
    assert f"offset  {event['end']}" in told.stdout
    assert f"{event['threshold']:.5g} (on) reached" in told.stdout
    assert f"peak    {event['score']:.4f}" in told.stdout
    assert "█" in told.stdout
    assert "─" in told.stdout
    assert all(len(line) <= 100 for line in told.stdout.splitlines())
    drawn = ET.parse(tmp_path / "why.svg").getroot()
    assert drawn.tag.endswith("svg")
    assert sum(each.tag.endswith("polyline") for each in drawn) == 5  # four labels and the threshold
    facts = json.loads(urbandetect("explain", event["id"], "--json").stdout)
    assert facts["event"]["id"] == event["id"]
    assert facts["event"]["offset"] == event["end"]
    inside = [event["start"] <= at <= event["end"] for at in facts["times"]]
    peak = max(score for score, during in zip(facts["scores"][event["label"]], inside, strict=True) if during)
    assert peak == pytest.approx(event["score"], abs=0.002)
    assert not all(inside)
    assert set(facts["on"][event["label"]]) == {event["threshold"]}


def test_explain_says_why_nothing_was_told(urbandetect, loudness_model, logging_on, bursts, tmp_path):
    logging_on("[thresholds.loud]\non = 0.95\nmin_on_s = 0.2\n[thresholds.so_far]\non = 0.2\nmin_on_s = 0.5\n")
    sound = bursts(20.0, (5.0, 6.0)) + np.float32(0.3) * bursts(20.0, (12.0, 13.5))
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    lines = urbandetect("run", "--model", loudness_model, "--input", "a.wav", "--speed", "max").stdout.splitlines()
    assert not lines
    begin_s = min(part.ends_s for _, part in parts_of(tmp_path / "logs")) - 0.1
    at = f"{np.datetime64(round((begin_s + 5.5) * 1000), 'ms')}Z"
    said = urbandetect("explain", "--at", at, "--label", "loud").stdout
    assert re.search(r"not told: it came to 0\.9\d* at \S+Z, 0\.95 opens an event", said)
    shutil.rmtree(logging_on("[thresholds.loud]\non = 0.85\nmin_on_s = 5\n"))
    urbandetect("run", "--model", loudness_model, "--input", "a.wav", "--speed", "max")
    newest = min(part.ends_s for _, part in parts_of(tmp_path / "logs")) - 0.1
    at = f"{np.datetime64(round((newest + 5.5) * 1000), 'ms')}Z"
    said = json.loads(urbandetect("explain", "--at", at, "--label", "loud", "--json").stdout)["why"]
    assert re.fullmatch(r"not told: it came to 0\.[89]\d* at \S+Z, over 0.85 for 1.00 s at most, min_on_s is 5", said)
    nothing = urbandetect("explain", "--at", "2001-01-01T00:00:00+01:00")
    assert (nothing.returncode, nothing.stdout) == (64, "")
    assert "2000-12-31T22:59:55.000Z to 2000-12-31T23:00:05.000Z: nothing was heard then" in nothing.stderr


def test_explain_says_of_the_time_asked_that_a_cool_down_held_it_back(urbandetect, loudness_model, logging_on, bursts, tmp_path):
    logging_on("[thresholds.loud]\non = 0.85\ncooldown_s = 10\n")
    soundfile.write(tmp_path / "a.wav", bursts(20.0, (5.0, 6.0), (9.0, 9.5)), 8000)
    lines = urbandetect("run", "--model", loudness_model, "--input", "a.wav", "--speed", "max").stdout.splitlines()
    (told,) = [event for event in map(json.loads, lines) if event["phase"] == "end" and event["label"] == "loud"]

    def why(after_s):
        at = np.datetime64(told["start"].rstrip("Z")) + np.timedelta64(round(1000 * after_s), "ms")
        return json.loads(urbandetect("explain", "--at", f"{at}Z", "--label", "loud", "--json").stdout)["why"]

    assert [why(after_s) for after_s in (-1, 0.5, 2.4)] == [f"told: {told['id']}"] * 3
    held = rf"not told: it came to 0\.\d* at \S+Z, [34]\.\d\d s after the end of {told['id']}, cooldown_s is 10"
    assert all(re.fullmatch(held, why(after_s)) for after_s in (2.6, 4.2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "needs an event's id or --at TIME"),
        (("5d0c2e8f91a4-loud-0",), "holds no score log; set log_scores.folder"),
        (("--at", "06:15"), "holds no score log"),
        (("x", "--label", "loud"), "go with --at"),
        (("x", "--plot", "a.png"), "name it .svg"),
    ],
)
def test_what_cannot_be_explained_is_one_clear_line(urbandetect, given, said):
    found = urbandetect("explain", *given)
    assert found.returncode == 64
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def test_what_is_not_in_the_logs_is_said(urbandetect, loudness_model, logging_on, bursts, tmp_path):
    logging_on()
    soundfile.write(tmp_path / "a.wav", bursts(1.0, (0.2, 0.6)), 8000)
    urbandetect("run", "--model", loudness_model, "--input", "a.wav", "--speed", "max")
    for given, said in (
        (("street",), "is no event's id"),
        (("5d0c2e8f91a4-loud-800",), "is in none of the score logs"),
        (("--at", "06:15"), "'06:15' is no time"),
        (("--at", "2026-11-25T06:15:03"), "has no time zone"),
        (("--at", "2026-11-25T06:15:03Z", "--source", "yard"), "'yard' has no log; there are logs of mic1"),
    ):
        found = urbandetect("explain", *given)
        assert (found.returncode, found.stderr.count("\n")) == (64, 1), found.stderr
        assert said in found.stderr


def test_a_reload_s_thresholds_are_in_the_log_from_the_row_on_at_which_they_count(daemon, logging_on, bursts):
    folder = logging_on("[thresholds.loud]\non = 0.6\n")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    logging_on("[thresholds.loud]\non = 0.99\n")
    run.send(signal.SIGHUP)
    run.wait_for_error("settings read again")
    run.say(bursts(1.0, (0.2, 0.5)))
    assert run.end() == 0
    parts = parts_of(folder)
    assert [part.thresholds["loud"].on for _, part in parts] == [0.6, 0.99]
    assert len(list(stretches(parts))) == 1
    assert [len([each for each in part.told if each.phase == "start"]) for _, part in parts] == [1, 0]


def test_a_gap_and_a_lost_microphone_are_gaps_in_the_log_that_nothing_is_read_across(
    daemon, logging_on, microphone, bursts, events
):
    folder = logging_on()
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    run = daemon("--device", "hw:1", env=microphone.env)
    run.wait_for(lambda line: '"phase":"end"' in line)
    microphone.fault("overflow")
    time.sleep(0.7)
    microphone.fault("")
    run.wait_for_error("samples were lost")
    gap = len(run.lines)
    run.wait_for(lambda line: '"phase":"end"' in line, after=gap + 1)
    microphone.fault("unplug")
    run.wait_for_error("looking for it")
    lost = len(run.lines)
    microphone.fault("")
    run.wait_for(lambda line: '"phase":"end"' in line, after=lost)
    run.send(signal.SIGTERM)
    assert run.end() == 0
    parts = parts_of(folder)
    heard = [(stretch[0][1], stretch[-1][1].first + stretch[-1][1].rows * 800) for stretch in stretches(parts)]
    before, after = dict.fromkeys(begin.session for begin, _ in heard)
    assert [begin.first for begin, _ in heard].count(0) == 2
    assert heard[-1][0].session == after
    gaps = [begin.first - end for (_, end), (begin, _) in pairwise(heard) if begin.session == before]
    assert max(gaps) > 0.2 * 8000  # a computer that is busy has more of them
    ids = {event["id"] for event in events(run.lines) if event["phase"] == "end"}
    kept = [(part.session, each) for _, part in parts for each in part.told if each.phase == "end"]
    assert {f"{session}-{each.label}-{each.onset}" for session, each in kept} == ids


def test_thresholds_that_tune_proposes_for_what_was_heard_tell_no_more_than_its_target_when_it_is_heard_again(
    urbandetect, loudness_model, logging_on, tmp_path
):
    """Twenty minutes in which 60 sounds are told, of which 24 are asked for."""
    logging_on()
    rows = np.full(12_000, 0.1)
    rows[100::200] = np.random.default_rng(3).uniform(0.55, 0.95, 60)
    soundfile.write(tmp_path / "street.wav", np.repeat(rows, 800), 8000)
    run = ("run", "--model", loudness_model, "--input", "street.wav", "--speed", "max")

    def told(lines):
        return sum(event["label"] == "loud" for event in ended(lines))

    assert told(urbandetect(*run).stdout.splitlines()) == 60
    tune = ("--target", "72/h", "--label", "loud")
    proposed = urbandetect("tune", "logs", *tune)
    assert proposed.returncode == 0, proposed.stderr
    assert "60 events told at the thresholds now in force" in proposed.stdout
    foretold = int(re.search(r"(\d+) at the new ones", proposed.stdout)[1])
    assert 12 <= foretold <= 24
    heard = json.loads(urbandetect("tune", "street.wav", "--model", loudness_model, *tune, "--json").stdout)
    assert heard["told"]["loud"] == [60, pytest.approx(foretold, abs=1)]  # the log has rounded scores
    logging_on(proposed.stdout[proposed.stdout.index("[thresholds") :])
    again = told(urbandetect(*run).stdout.splitlines())
    assert foretold - 2 <= again <= foretold
    scan = urbandetect("scan", "--model", loudness_model, "street.wav").stdout.splitlines()
    assert sum(json.loads(line)["label"] == "loud" for line in scan) == again


def test_health_tells_of_the_log(broker, daemon, logging_on, bursts):
    broker.start()
    witness = broker.witness()
    folder = logging_on(f"[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}\n")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    line = witness.lines[witness.wait_for(lambda line: "/health " in line and '"hearing": true' in line)]
    said = json.loads(line.split(" ", 2)[2])["score_log"]
    assert said == {"folder": str(folder), "mb": 0.0, "rows": 0, "dropped": 0, "trouble": ""}
    run.end()


def test_off_nothing_of_it_is_loaded(loudness_model, bursts, tmp_path):
    soundfile.write(tmp_path / "a.wav", bursts(1.0, (0.2, 0.6)), 8000)
    program = (
        "import sys; from detector.cli import cli\n"
        f"cli.main(['run', '--model', {str(loudness_model)!r}, '--input', 'a.wav', '--speed', 'max'], standalone_mode=False)\n"
        "print([name for name in sys.modules if 'score' in name or 'explain' in name and 'cli' not in name])"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.splitlines()[-1] == "[]"
