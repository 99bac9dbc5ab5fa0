from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"


@pytest.fixture
def settings(tmp_path):
    """Settings in the file that the daemon finds."""

    def write(text=""):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n{text}')

    write()
    return write


def messages(witness, topic):
    """(retained, payload) of everything seen under a topic, in order."""
    split = [line.split(" ", 2) for line in witness.lines if line[:2] in ("0 ", "1 ")]
    return [(retained == "1", payload) for retained, at, payload in split if at == f"urbandetect/street/{topic}"]


def phases(witness):
    return [json.loads(payload)["phase"] for _, payload in messages(witness, "mic1/event")]


def test_what_is_heard_reaches_an_independent_subscriber(broker, daemon, settings, bursts):
    settings("[events]\nlevel_s = 0.5")
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(0.2))
    witness.wait_for(lambda line: line == "1 urbandetect/street/mic1/status online")
    run.say(bursts(1.5, (0.2, 1.0)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert run.end() == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")

    assert dict.fromkeys(messages(witness, "status")) == dict.fromkeys([(True, "online"), (True, "offline")])
    assert messages(witness, "mic1/status")[-2:] == [(True, "online"), (True, "no_audio")]
    states = [payload for _, payload in messages(witness, "mic1/label/loud/state")]
    assert "".join(states).replace("OFFOFF", "OFF").startswith("OFFONOFF")
    assert {retained for retained, _ in messages(witness, "mic1/label/loud/state")} == {True}
    assert {payload for _, payload in messages(witness, "mic1/label/so_far/state")} == {"OFF"}
    told = messages(witness, "mic1/event")
    start, end = (json.loads(payload) for _, payload in told)
    assert [retained for retained, _ in told] == [False, False]
    assert (start["phase"], end["phase"], start["id"]) == ("start", "end", end["id"])
    assert end["duration_s"] == 0.8
    assert {retained for retained, _ in messages(witness, "mic1/level")} == {False}
    assert json.loads(messages(witness, "mic1/level")[0][1])["interval_s"] >= 0.5
    first, last = (json.loads(messages(witness, "health")[i][1]) for i in (0, -1))
    assert first.keys() == last.keys() >= {"version", "model", "provider", "uptime_s", "sources"}
    assert {retained for retained, _ in messages(witness, "health")} == {True}


def test_a_late_subscriber_finds_the_states_and_no_events(broker, daemon, settings, bursts):
    broker.start()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    witness = broker.witness()
    run.say(bursts(1.0, (0.2, 1.0)))
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    late = broker.witness()
    late.wait_for(lambda line: line.startswith("1 urbandetect/street/health"))
    for topic, payload in {"status": "online", "mic1/status": "online", "mic1/label/loud/state": "ON"}.items():
        late.wait_for(lambda line, wanted=f"1 urbandetect/street/{topic} {payload}": line == wanted)
    assert messages(late, "mic1/event") == []


def test_a_recording_as_fast_as_it_goes_loses_no_event(broker, daemon, settings, bursts, tmp_path):
    soundfile.write(tmp_path / "many.wav", np.tile(bursts(0.6, (0.0, 0.2)), 500), 8000)
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "many.wav", "--speed", "max", "--mqtt", f"127.0.0.1:{broker.port}")
    assert run.end() == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    told = {(event["id"], event["phase"]) for event in map(json.loads, (payload for _, payload in messages(witness, "mic1/event")))}
    assert len([label for label, _ in told if "-loud-" in label]) == 1000  # each at least once


def test_the_demo_recording_arrives_as_events(broker, start, settings, urbandetect):
    broker.start()
    witness = broker.witness()
    run = start("urbandetect", "run", "--input", STREET, "--speed", "max", "--mqtt", f"127.0.0.1:{broker.port}")
    assert run.end() == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    scan = [json.loads(line)["label"] for line in urbandetect("scan", STREET).stdout.splitlines()]
    ended = [json.loads(payload) for _, payload in messages(witness, "mic1/event") if '"phase":"end"' in payload]
    assert [event["label"] for event in ended] == scan
    assert "dog_bark" in scan


def test_a_broker_killed_and_started_again_gets_the_events_made_meanwhile(broker, daemon, settings, bursts):
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(0.5, (0.2, 0.4)))
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    broker.kill()
    run.say(bursts(1.0, (0.5, 0.8)))
    time.sleep(0.3)  # hears it, without a broker
    run.send(signal.SIGSTOP)  # and stays behind until somebody listens
    broker.start()
    late = broker.witness()
    run.send(signal.SIGCONT)
    late.wait_for(lambda line: line == "1 urbandetect/street/status online")
    late.wait_for(lambda line: '"phase":"end"' in line and json.loads(line.split(" ", 2)[2])["id"].endswith("-8000"))
    run.say(bursts(1.0, (0.2, 0.5)))
    late.wait_for(lambda line: '"phase":"end"' in line and json.loads(line.split(" ", 2)[2])["id"].endswith("-13600"))
    assert run.process.poll() is None


def test_a_state_held_back_by_an_outage_does_not_overtake_a_newer_one(broker, daemon, settings, bursts):
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(0.2))
    witness.wait_for(lambda line: line.endswith("mic1/status online"))
    broker.program.send(signal.SIGSTOP)
    run.say(bursts(0.5, (0.1, 0.5)))  # ON goes out and is never acknowledged
    time.sleep(0.3)
    broker.kill()
    time.sleep(0.1)
    run.say(bursts(0.5))  # OFF while there is no broker
    time.sleep(0.2)
    run.send(signal.SIGSTOP)
    broker.start()
    late = broker.witness()
    run.send(signal.SIGCONT)
    late.wait_for(lambda line: '"phase":"end"' in line)
    late.wait_for(lambda line: line.endswith("loud/state OFF"))
    run.say(bursts(0.5, (0.1, 0.5)))
    late.wait_for(lambda line: line.endswith("loud/state ON"))
    assert [payload for _, payload in messages(late, "mic1/label/loud/state")] == ["OFF", "ON"]


def test_a_daemon_that_is_killed_is_offline_at_once(broker, daemon, settings, bursts):
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    witness.wait_for(lambda line: line == "1 urbandetect/street/status online")
    run.kill()
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline", within_s=2)


def test_a_request_to_stop_ends_open_events_says_offline_and_takes_less_than_two_seconds(broker, daemon, settings, bursts):
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(1.0, (0.2, 1.0)))
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    begin = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.process.wait(10) == 0
    assert time.monotonic() - begin < 2
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    assert phases(witness) == ["start", "end"]
    assert messages(witness, "mic1/label/loud/state")[-1] == (True, "OFF")


def test_without_a_broker_a_request_to_stop_takes_less_than_two_seconds_too(broker, daemon, settings, bursts):
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(1.0, (0.2, 1.0)))
    deadline = time.monotonic() + 10
    while "hearing" not in run.errors.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    begin = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.process.wait(10) == 0
    assert time.monotonic() - begin < 2


def test_with_the_right_password_it_connects_and_no_command_line_shows_it(broker, daemon, settings, tmp_path):
    (tmp_path / "secret").write_text("right\n")
    settings("[mqtt]\nusername = 'me'\npassword_file = 'secret'")
    broker.start("me", "right")
    witness = broker.witness("-u", "me", "-P", "right")
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    witness.wait_for(lambda line: line == "1 urbandetect/street/status online")
    assert b"right" not in Path(f"/proc/{run.process.pid}/cmdline").read_bytes()
