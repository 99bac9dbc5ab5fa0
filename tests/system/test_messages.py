"""What is published, and what a program reads from a command, is what detector/schemas says: on real messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install -e '.[test]'")

ROOT = Path(__file__).parents[2]
STREET = ROOT / "detector" / "demo" / "street.ogg"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "detector" / "schemas").glob("*.json")}
LEVELS = re.compile(r"<\w+>")


def valid(name, message):
    """The message, which its schema allows."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors(message))
    assert error is None, f"detector/schemas/{name}.json: {error.message} at {error.json_path} in {message}"
    return message


def published(witness, but=()):
    """Schema -> its messages on the broker, each valid, on the topic, with the QoS and retained as the schema says.

    but: beginnings of topics that are not urbandetect's own.
    """
    seen = {}
    for line in list(witness.lines):
        retained, qos, topic, payload = line.split(" ", 3)
        if topic.startswith(("$SYS/", *but)):
            continue
        name = next((n for n, s in SCHEMAS.items() if "mqtt" in s and re.fullmatch(_topic(s), topic)), None)
        assert name, f"{topic}: no schema of detector/schemas is for it"
        told = SCHEMAS[name]["mqtt"]
        assert (qos, retained) == (str(told["qos"]), "1" if told["retained"] else "0"), line
        kind = SCHEMAS[name].get("type")
        message = json.loads(payload) if kind == "object" else float(payload) if kind == "number" else payload
        seen.setdefault(name, []).append(valid(name, message))
    return seen


def _topic(schema):
    return "urbandetect/" + LEVELS.sub("[^/]+", schema["mqtt"]["topic"])


@pytest.fixture
def witness(broker):
    broker.start()
    return broker.witness("-F", "%r %q %t %p")


@pytest.fixture
def settings(tmp_path):
    def write(text=""):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n{text}')

    return write


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_key_of_a_schema_is_described_and_what_is_not_always_there_says_when(name):
    schema = SCHEMAS[name]

    def look(part, required, where):
        assert part["description"].strip(), where
        if not required:
            assert part["description"].startswith("Only "), f"{name}.json: {where}: say when it is there: 'Only ...'"
        if "properties" in part:
            assert part["additionalProperties"] is False, where
        for key, inner in part.get("properties", {}).items():
            look(inner, key in part.get("required", []), f"{where}.{key}")
        for inner in (part.get("items"), part.get("additionalProperties")):
            if inner and inner.get("properties"):
                look(inner, True, f"{where}[]")

    jsonschema.Draft202012Validator.check_schema(schema)
    look(schema, True, name)
    assert ("mqtt" in schema) != ("command" in schema)
    for example in schema.get("examples", []):
        valid(name, example)


def test_a_message_with_another_key_or_without_one_is_not_valid():
    [event] = SCHEMAS["event"]["examples"]
    for wrong in (event | {"colour": 1}, event | {"score": 2}, {key: event[key] for key in event if key != "seq"}):
        with pytest.raises(AssertionError, match=r"event\.json"):
            valid("event", wrong)


def test_a_street_with_updates_calibration_profile_and_discovery_is_told_as_described(witness, broker, start, settings):
    settings(f"""
        [[source]]
        input = "{STREET}"
        calibration_db = 114.0
        [[source]]
        name = "yard"
        input = "{STREET}"
        [mqtt]
        host = "127.0.0.1"
        port = {broker.port}
        [home_assistant]
        discovery = "device"
        [clips]
        folder = "clips"
        labels = ["dog_bark"]
        [log_scores]
        folder = "scores"
        [events]
        update_s = 0.3
        level_s = 1.0
        [thresholds.dog_bark]
        on = 0.3
        cooldown_s = 1.0
        [[profile]]
        name = "day"
        begins = "00:00"
        ends = "12:00"
        muted = ["engine_idling"]
        [[profile]]
        name = "night"
        begins = "12:00"
        ends = "00:00"
        muted = ["engine_idling"]
    """)
    run = start("urbandetect", "run", "--speed", "max")
    assert run.end() == 0
    witness.wait_for(lambda line: line.endswith("street/status offline"))
    seen = published(witness, but=["homeassistant/"])
    assert seen.keys() >= {"event", "level", "health", "status", "source-status", "label-state", "threshold"}
    assert {event["phase"] for event in seen["event"]} == {"start", "update", "end"}
    assert {(event["source"], event["level"]["laeq"] is None) for event in seen["event"]} == {("mic1", False), ("yard", True)}
    assert {level["laeq"] is None for level in seen["level"]} == {True, False}
    assert {event["label"] for event in seen["event"] if event["clip"]} == {"dog_bark"}
    assert all({"clips", "score_log"} <= health.keys() for health in seen["health"])
    assert set(seen["label-state"]) == {"ON", "OFF"}
    assert [set(health["sources"]) for health in seen["health"]] == [{"mic1", "yard"}] * len(seen["health"])


def test_a_microphone_that_overflows_and_goes_in_an_outage_is_told_as_described(
    witness, broker, daemon, settings, microphone, bursts, urbandetect
):
    settings('[home_assistant]\ndiscovery = "device"\n')
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    at = f"127.0.0.1:{broker.port}"
    run = daemon("--device", "hw:1", "--mqtt", at, env=microphone.env)
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    send = ["mosquitto_pub", "-h", "127.0.0.1", "-p", f"{broker.port}", "-q", "1"]
    subprocess.run([*send, "-t", "urbandetect/street/mic1/threshold/loud/set", "-m", "0.75"], check=True)
    witness.wait_for(lambda line: line.endswith("threshold/loud 0.75"))
    done = urbandetect("doctor", "--mqtt", at, "--seconds", "0.5", "--json", env=os.environ | microphone.env)
    valid("doctor", json.loads(done.stdout))
    witness.wait_for(lambda line: line.endswith("street/doctor hello"))
    microphone.fault("overflow")
    time.sleep(0.6)
    microphone.fault("")
    witness.wait_for(lambda line: '"overflow":' in line)
    seen = published(witness, but=["homeassistant/"])
    assert {"hello", "threshold", "threshold-set"} <= seen.keys()

    broker.kill()
    run.wait_for_error("connection lost")
    time.sleep(1.5)  # a burst is heard meanwhile
    microphone.fault("unplug")
    run.wait_for_error("looking for it")
    broker.start()
    late = broker.witness("-F", "%r %q %t %p")
    late.wait_for(lambda line: '"lost":' in line)
    last = published(late, but=["homeassistant/"])["health"][-1]
    assert last["outbox"]["messages"] > 0
    assert last["mqtt"]["accepted"] > 0
    mic1 = last["sources"]["mic1"]
    assert (mic1["hearing"], mic1["gaps"].keys()) == (False, {"overflow", "lost"})
    assert mic1["trouble"]
    assert mic1["lost_samples"] > 0


def test_without_a_broker_a_line_of_standard_output_is_an_event_as_described(urbandetect):
    lines = urbandetect("run", "--input", STREET, "--speed", "max").stdout.splitlines()
    assert len([valid("event", json.loads(line)) for line in lines]) >= 4


def test_what_a_program_reads_from_a_command_is_as_described(urbandetect, microphone, shipped_model, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000)
    microphone.hears(tone.astype(np.float32))
    soundfile.write(tmp_path / "tone.wav", tone, 48000)
    env = os.environ | microphone.env

    def lines(*arguments):
        return [json.loads(line) for line in urbandetect(*arguments, env=env).stdout.splitlines()]

    read = {
        "scan": lines("scan", STREET, tmp_path / "tone.wav"),
        "devices": lines("devices", "--json"),
        "meter": lines("devices", "--meter", "--seconds", "0.5", "--json"),
        "calibrate": lines("calibrate", "--device", "hw:1", "--level", "94", "--seconds", "1", "--json"),
        "doctor": lines("doctor", "--device", "hw:1", "--seconds", "0.5", "--json"),
        "model-info": [
            *lines("model", "info", shipped_model, "--json"),
            *lines("model", "info", ROOT / "models" / "reference.cfg", "--json"),
        ],
    }
    assert read.keys() == {name for name, schema in SCHEMAS.items() if "command" in schema}
    for name, messages in read.items():
        assert messages, name
        for message in messages:
            valid(name, message)
    assert read["devices"][0]
    assert any(device["dbfs"] is not None for device in read["meter"][-1])
