"""What Home Assistant sees on a real broker, and what it can make the daemon do."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import soundfile

CONFIG = "homeassistant/device/urbandetect__street__mic1/config"


@pytest.fixture
def settings(tmp_path):
    """Settings in the file that the daemon finds."""

    def write(text='[home_assistant]\ndiscovery = "device"'):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n{text}')

    write()
    return write


@pytest.fixture
def publish(broker):
    def send(topic, payload, *options):
        target = ("-h", "127.0.0.1", "-p", str(broker.port), "-t", topic, "-m", payload)
        subprocess.run(["mosquitto_pub", *target, *options], check=True, timeout=10)

    return send


def seen(witness, topic):
    """Payloads of a topic, in order."""
    return [line.split(" ", 2)[2] for line in witness.lines if line[2:].startswith(f"{topic} ")]


def kept(broker):
    """What the broker keeps of discovery and thresholds now: topic -> payload."""
    witness = broker.witness()
    witness.wait_for(lambda line: line.startswith("1 urbandetect/street/status "))
    time.sleep(0.2)
    split = [line.split(" ", 2) for line in witness.lines]
    return {
        topic: payload for retained, topic, payload in split if retained == "1" and ("/config" in topic or "threshold" in topic)
    }


def topics(part):
    """Every topic a message names, and whether we publish to it."""
    if isinstance(part, dict):
        own = [(value, key != "command_topic") for key, value in part.items() if key == "topic" or key.endswith("_topic")]
        return own + [topic for value in part.values() for topic in topics(value)]
    return [topic for value in part for topic in topics(value)] if isinstance(part, list) else []


@pytest.mark.parametrize("mode", ["device", "component"])
def test_every_topic_it_is_told_of_is_one_we_publish_or_take(broker, daemon, settings, bursts, publish, mode):
    settings(f'[home_assistant]\ndiscovery = "{mode}"\n[events]\nlevel_s = 0.5')
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(1.5, (0.2, 1.0)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    told = {topic: json.loads(payload) for topic, payload in kept(broker).items() if topic.endswith("/config")}
    assert len(told) == (1 if mode == "device" else 6)
    named = {topic for message in told.values() for topic in topics(message)}
    assert len(named) == 10
    for topic, ours in named:
        if ours:
            assert seen(witness, topic), topic
        else:
            publish(topic, "0.7")
            state = topic.removesuffix("/set")
            witness.wait_for(lambda line, wanted=f"1 {state} 0.7": line == wanted)
    config = witness.wait_for(lambda line: "/config {" in line)
    assert config < witness.wait_for(lambda line: '"phase":"start"' in line)  # else the first event would find nobody


def test_home_assistant_that_starts_is_told_again_within_ten_seconds_and_once(broker, daemon, settings, publish):
    broker.start()
    witness = broker.witness()
    daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    first = witness.wait_for(lambda line: line.startswith(f"1 {CONFIG}"))
    for _ in range(5):
        publish("homeassistant/status", "online")
    witness.wait_for(lambda line: line == witness.lines[first], within_s=11.5, after=first + 1)
    time.sleep(0.5)
    assert len(seen(witness, CONFIG)) == 2


def test_what_was_renamed_removed_changed_or_switched_off_is_taken_back(broker, daemon, settings, tmp_path, bursts):
    soundfile.write(tmp_path / "street.wav", bursts(30.0, (1.0, 2.0)), 8000)
    broker.start()

    def after(mode, *names, seconds=2.8):
        """What the broker keeps when the daemon has run like this."""
        sources = "".join(f'[[source]]\nname = "{name}"\ninput = "street.wav"\n' for name in names)
        settings(f'{sources}[home_assistant]\ndiscovery = "{mode}"')
        run = daemon("--mqtt", f"127.0.0.1:{broker.port}")
        run.wait_for_error("connected")
        time.sleep(seconds)
        run.send(signal.SIGTERM)
        assert run.process.wait(10) == 0
        return kept(broker)

    two = after("device", "mic1", "yard", seconds=0.8)
    assert {topic.split("/")[2] for topic in two if topic.endswith("/config")} == {
        "urbandetect__street",
        "urbandetect__street__mic1",
        "urbandetect__street__yard",
    }
    assert {topic.split("/")[2] for topic in two if "threshold" in topic} == {"mic1", "yard"}
    renamed = after("device", "roof")
    assert {topic.split("/")[2] for topic in renamed} == {"urbandetect__street__roof", "roof"}
    per_entity = after("component", "roof")
    assert {topic.split("/")[1] for topic in per_entity if "/config" in topic} == {"event", "sensor", "binary_sensor", "number"}
    assert after("off", "roof") == {}
    assert not list(tmp_path.rglob("*.announced.json"))


def test_a_threshold_set_over_mqtt_changes_which_events_come_until_the_settings_are_read_again(
    broker, daemon, settings, bursts, publish, events
):
    settings('[home_assistant]\ndiscovery = "device"\n[thresholds.loud]\non = 0.95')
    broker.start()
    witness = broker.witness()
    state = "urbandetect/street/mic1/threshold/loud"
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("hearing")
    witness.wait_for(lambda line: line == f"1 {state} 0.95")
    publish(f"{state}/set", "0.8")
    at = witness.wait_for(lambda line: line == f"1 {state} 0.8")
    run.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    run.send(signal.SIGHUP)
    witness.wait_for(lambda line: line == f"1 {state} 0.95", after=at)
    run.say(bursts(1.0, (0.2, 0.5)))
    publish(f"{state}/set", "0.7", "-r")  # the broker keeps it, and hands it to who comes
    at = witness.wait_for(lambda line: line == f"1 {state} 0.7")
    run.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: '"phase":"end"' in line and '"threshold":0.7' in line)
    told = events(witness.lines)
    assert [(int(event["id"].rsplit("-", 1)[1]), event["threshold"]) for event in told] == [(9600, 0.8)] * 2 + [(25600, 0.7)] * 2
    run.send(signal.SIGTERM)
    assert run.process.wait(10) == 0
    again = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    again.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: line == f"1 {state} 0.95", after=at)
    witness.wait_for(lambda line: line == "1 urbandetect/street/mic1/status online", after=at)
    time.sleep(1.5)
    assert seen(witness, state)[-1] == "0.95"


def test_rubbish_is_ignored_said_once_and_stops_nothing(broker, daemon, settings, bursts, publish):
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(0.2))
    run.wait_for_error("hearing")
    for topic in ("mic1/threshold/loud", "mic1/threshold/no_such", "no_such/threshold/loud", "é/threshold/é"):
        for payload in ("loud", "", "2", "nan", "9" * 100_000):
            publish(f"urbandetect/street/{topic}/set", payload)
    run.say(bursts(1.5, (0.2, 1.0)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert run.errors.read_text().count("is ignored") == 1
    assert set(seen(witness, "urbandetect/street/mic1/threshold/loud")) == {"0.5"}
    assert run.process.poll() is None


def test_with_the_documented_access_list_home_assistant_sets_thresholds_and_nobody_else(
    broker, daemon, settings, publish, tmp_path
):
    page = (Path(__file__).parents[2] / "docs" / "THREAT-MODEL.md").read_text()
    (tmp_path / "access").write_text("topic read $SYS/#\n" + page.split("```")[1])
    settings('[mqtt]\nusername = "urbandetect"\n[home_assistant]\ndiscovery = "device"')
    broker.start("", "", f"acl_file {tmp_path / 'access'}")
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    state = "urbandetect/street/mic1/threshold/loud"
    witness.wait_for(lambda line: line.startswith(f"1 {CONFIG}"))
    witness.wait_for(lambda line: line == f"1 {state} 0.5")
    publish(f"{state}/set", "0.6")
    publish(f"{state}/set", "0.7", "-u", "homeassistant")
    witness.wait_for(lambda line: line == f"1 {state} 0.7")
    assert seen(witness, state) == ["0.5", "0.7"]
    assert "refuses" not in run.errors.read_text()


def test_switched_off_it_says_nothing_subscribes_to_nothing_and_loads_nothing(broker, daemon, settings, bursts):
    settings("")
    broker.start("", "", "log_type all")
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}", env={"PYTHONPROFILEIMPORTTIME": "1"})
    run.say(bursts(1.5, (0.2, 1.0)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert run.end() == 0
    loaded = run.errors.read_text()
    assert "detector.publish.mqtt" in loaded
    assert "announcer" not in loaded
    assert "home_assistant" not in loaded
    assert not [line for line in witness.lines if "homeassistant" in line or "threshold/" in line]
    said = broker.program.errors.read_text()
    assert "Received PUBLISH from urbandetect-street" in said
    assert "Received SUBSCRIBE from urbandetect-street" not in said
