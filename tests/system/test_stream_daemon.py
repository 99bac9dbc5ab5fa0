"""The whole daemon on network streams: the events of the file, and nothing blocked when the server is not there."""

from __future__ import annotations

import io
import json
import re
import signal
import time
import wave
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest

PASSWORD = "Pa55w0rd"


@pytest.fixture(autouse=True)
def _pyav():
    pytest.importorskip("av", reason="needs PyAV: pip install -e '.[stream]'")


@pytest.fixture
def wav():
    """16 bit mono at 8 kHz, as a file's bytes."""

    def make(samples):
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            out.writeframes((samples * 32767).astype("<i2").tobytes())
        return file.getvalue()

    return make


@pytest.fixture
def hear(broker, daemon, tmp_path):
    """The daemon with this `input`, its broker, and who witnesses it."""

    def run(url):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n[[source]]\nname = "mic1"\ninput = "{url}"\n')
        if broker.program is None:
            broker.start()
        witness = broker.witness()
        return daemon("--mqtt", f"127.0.0.1:{broker.port}"), witness

    return run


def facts(told):
    """What two hearings of the same sound have in common: all but session, time and name."""
    return [(event["phase"], event["id"].split("-", 1)[1], event["duration_s"], event["score"], event["level"]) for event in told]


def told(witness, events, count):
    witness.wait_for(lambda line: len(events(list(witness.lines))) >= count)
    return events(witness.lines)[:count]


def expected(daemon, events, path):
    run = daemon("--input", path, "--speed", "max")
    assert run.end() == 0
    return facts(events(run.lines))


def test_the_events_of_a_stream_are_those_of_its_file(hear, daemon, events, sound_server, bursts, wav, tmp_path):
    data = wav(bursts(6.0, (0.5, 1.2), (2.0, 2.3), (3.1, 4.4), (5.0, 5.4)))
    (tmp_path / "sound.wav").write_bytes(data)
    sound_server.files["live"], sound_server.speed = (data, 6.0), 2.0
    run, witness = hear(sound_server.url("live", f"user:{PASSWORD}@"))
    heard = facts(told(witness, events, 8))
    witness.wait_for(lambda line: line.endswith("mic1/status no_audio") and heard)
    assert heard == expected(daemon, events, tmp_path / "sound.wav")
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert PASSWORD not in run.errors.read_text() + "".join(witness.lines)


@pytest.mark.parametrize("speed", [0.0, 8.0])
def test_times_of_what_is_sent_faster_than_it_sounds_never_go_back_nor_lie_in_the_future(
    daemon, events, sound_server, bursts, wav, speed
):
    sound_server.files["live"], sound_server.speed = (wav(np.tile(bursts(1.0, (0.2, 0.7)), 60)), 60.0), speed
    run = daemon("--input", sound_server.url("live"))
    run.wait_for(lambda _: sum('"phase":"start"' in line for line in run.lines) >= 8)
    time.sleep(1.0)
    now = datetime.now(UTC)
    run.send(signal.SIGTERM)
    assert run.end() == 0
    times = [datetime.fromisoformat(event[key]) for event in events(run.lines) for key in ("start", "end") if event.get(key)]
    starts = sorted({datetime.fromisoformat(event["start"]) for event in events(run.lines)})
    assert max(times) <= now
    assert {round((after - before).total_seconds(), 1) for before, after in pairwise(starts)} == {1.0}
    assert "too slow" not in run.errors.read_text()


def test_the_events_of_a_camera_over_rtsp_are_those_of_its_file(hear, daemon, events, camera, bursts, wav, tmp_path):
    """Its picture is never asked for, and its password never shown."""
    (tmp_path / "sound.wav").write_bytes(wav(bursts(5.0, (1.0, 1.7), (2.5, 2.9), (3.5, 4.1))))
    _run, witness = hear(camera(tmp_path / "sound.wav"))
    heard = facts(told(witness, events, 6))
    wanted = expected(daemon, events, tmp_path / "sound.wav")
    assert [(phase, duration_s) for phase, _, duration_s, _, _ in heard] == [
        (phase, duration_s) for phase, _, duration_s, _, _ in wanted
    ]
    assert PASSWORD not in "".join(witness.lines)


def test_a_server_that_goes_is_told_and_heard_again_in_a_new_session_when_it_returns(hear, events, sound_server, bursts, wav):
    sound_server.files["live"] = wav(np.tile(bursts(1.0, (0.2, 0.7)), 60)), 60.0
    sound_server.speed = 4.0
    run, witness = hear(sound_server.url("live", f"user:{PASSWORD}@"))
    first = witness.wait_for(lambda line: '"phase":"start"' in line)
    begun_s = time.monotonic()
    sound_server.go()
    lost = witness.wait_for(lambda line: line.endswith("mic1/status no_audio"), after=first)
    assert time.monotonic() - begun_s < 3
    run.wait_for_error("Connection refused")  # looked for, and not there yet
    sound_server.start()
    begun_s = time.monotonic()
    again = witness.wait_for(
        lambda line: '"phase":"end"' in line, after=witness.wait_for(lambda line: line.endswith("mic1/status online"), after=lost)
    )
    assert time.monotonic() - begun_s < 7
    assert events(witness.lines[again : again + 1])[0]["session"] != events(witness.lines[first : first + 1])[0]["session"]
    health = [json.loads(line.split(" ", 2)[2]) for line in witness.lines if "/health " in line]
    assert health[-1]["sources"]["mic1"]["gaps"]["lost"] >= 1
    assert PASSWORD not in run.errors.read_text() + "".join(witness.lines)


def test_a_server_that_hangs_at_connecting_holds_up_neither_another_source_nor_the_end(
    hear, broker, daemon, tmp_path, deaf_port, sound_server, wav, bursts, events
):
    sound_server.files["live"], sound_server.speed = (wav(np.tile(bursts(1.0, (0.2, 0.7)), 60)), 60.0), 4.0
    second = f'input = "rtsp://user:{PASSWORD}@127.0.0.1:{deaf_port}/1"\n[[source]]\nname = "mic2"\n'
    (tmp_path / "detector.toml").write_text(f'node = "street"\n[[source]]\n{second}input = "{sound_server.url("live")}"\n')
    broker.start()
    witness = broker.witness()
    run = daemon("--mqtt", f"127.0.0.1:{broker.port}")
    witness.wait_for(lambda line: '"source":"mic2"' in line and '"phase":"end"' in line)
    begun_s = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert time.monotonic() - begun_s < 1
    assert "0 urbandetect/street/mic1/status online" not in witness.lines
    assert PASSWORD not in run.errors.read_text() + "".join(witness.lines)


def test_the_doctor_says_of_a_stream_where_it_is_what_it_sends_and_what_is_wrong(
    urbandetect, tmp_path, sound_server, loudness_model, wav, bursts
):
    sound_server.files["live"], sound_server.speed = (wav(np.tile(bursts(1.0, (0.2, 0.7)), 60)), 60.0), 4.0

    def checks(url):
        (tmp_path / "detector.toml").write_text(f'[[source]]\ninput = "{url}"\n[model]\npath = "{loudness_model}"\n')
        done = urbandetect("doctor", "--seconds", 0.5, "--json")
        assert PASSWORD not in done.stdout + done.stderr
        found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        return [(found[f"mic1 {name}"]["state"], found[f"mic1 {name}"]["what"]) for name in ("device", "opens", "samples", "level")]

    good = checks(sound_server.url("live", f"user:{PASSWORD}@"))
    assert [state for state, _ in good] == ["ok"] * 4
    assert re.search(r"\*\*\*@127\.0\.0\.1:\d+/live is at 127\.0\.0\.1 port \d+", good[0][1])
    assert good[1][1].startswith("pcm_s16le, ")
    assert " 8000 Hz, heard after " in good[1][1]
    missing = checks(sound_server.url("nothing", f"user:{PASSWORD}@"))
    assert [state for state, _ in missing] == ["ok", "fail", "skip", "skip"]
    assert "404" in missing[1][1]
    assert [state for state, _ in checks(f"rtsp://user:{PASSWORD}@no-such-host.invalid/1")] == ["fail", "skip", "skip", "skip"]
