"""The shipped flow in the real Node-RED: what it makes of what the real daemon hears."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOW = ROOT / "deploy" / "node-red" / "flow.json"
STREET = ROOT / "detector" / "demo" / "street.ogg"
SETTINGS = """module.exports = {
  flowFile: "flow.json", httpAdminRoot: false, httpNodeRoot: false, telemetry: {enabled: false}, logging: {console: {level: "info"}}
}"""
LOWER = "".join(f"[thresholds.{label}]\non = 0.05\noff = 0.04\n" for label in ("gun_shot", "siren", "drilling"))
"""So low that the recording, which has none of them, has some of each."""


@pytest.fixture
def node_red(tmp_path, start, broker):
    """Node-RED with the shipped flow, connected; nothing of the flow is changed but the broker's address, and how long it waits."""
    program = shutil.which("node-red", path=f"{ROOT}/.cache/node-red/node_modules/.bin:{os.environ['PATH']}")
    if not program or not shutil.which("node"):
        pytest.skip("needs Node-RED: scripts/integrations, or npm install --global node-red@4.1")

    def run(pause_s=0.5, deaf_s=1.0):
        flow = json.loads(FLOW.read_text())
        nodes = {node["id"].removeprefix("urbandetect-"): node for node in flow}
        nodes["broker"] |= {"broker": "127.0.0.1", "port": str(broker.port)}
        nodes["pause"] |= {"duration": str(pause_s), "units": "s"}
        nodes["deaf"] |= {"duration": str(deaf_s)}
        folder = tmp_path / "node-red"
        folder.mkdir()
        (folder / "flow.json").write_text(json.dumps(flow))
        (folder / "settings.js").write_text(SETTINGS)
        red = start(program, "--userDir", folder, env={"HOME": str(folder)})
        red.wait_for(lambda line: "Connected to broker" in line, within_s=30)
        deadline_s = time.monotonic() + 10
        while broker.program.errors.read_text().count("Sending SUBACK to nodered") < 4:
            assert time.monotonic() < deadline_s, "\n".join(red.lines)
            time.sleep(0.02)
        return red

    return run


def said(witness, topic):
    """Messages of a topic, in order."""
    return [json.loads(line.split(" ", 2)[2]) for line in witness.lines if line[2:].startswith(f"{topic} ")]


def heard_from(witness, topic, *wanted):
    """When a message of a topic holds all these."""
    witness.wait_for(lambda line: line[2:].startswith(f"{topic} ") and all(text in line for text in wanted))


def test_the_flow_tells_what_the_daemon_hears_and_when_its_microphone_and_computer_are_gone(node_red, broker, start, tmp_path):
    broker.start("", "", "log_type all")
    witness = broker.witness()
    red = node_red()
    (tmp_path / "detector.toml").write_text(f'node = "street"\n{LOWER}')
    run = start("urbandetect", "run", "--input", STREET, "--speed", "max", "--mqtt", f"127.0.0.1:{broker.port}")
    assert run.end() == 0
    heard_from(witness, "home/deaf/street/mic1", '"deaf":true')
    heard_from(witness, "home/deaf/street", '"deaf":true')
    heard_from(witness, "home/noise/street/mic1/drilling", '"on":false')
    witness.wait_for(lambda line: line[2:].startswith("home/heard/street/mic1/siren "))
    events = [json.loads(line.split(" ", 2)[2]) for line in witness.lines if "/mic1/event " in line]
    ended = {event["label"]: event for event in events if event["phase"] == "end"}
    begun = [event for event in events if event["phase"] == "start"]
    assert {"dog_bark", "gun_shot", "siren", "drilling"} <= ended.keys()

    alarms = [(event["label"], event["id"], event["start"]) for event in begun if event["label"] in ("gun_shot", "siren")]
    assert [(alarm["label"], alarm["id"], alarm["start"]) for alarm in said(witness, "home/alarm")] == alarms
    assert said(witness, "home/alarm")[0]["text"] == "gun_shot at street/mic1"
    for label, event in ended.items():
        last = {key: event[key] for key in ("start", "end", "duration_s", "score")}
        assert said(witness, f"home/heard/street/mic1/{label}")[-1] == last
    noise = said(witness, "home/noise/street/mic1/drilling")
    first = next(event for event in begun if event["label"] == "drilling")
    assert {"on": True, "since": first["start"]} in noise
    assert noise[-1].keys() == {"on", "until"}
    assert said(witness, "home/deaf/street/mic1")[-1]["text"] == "street/mic1 is deaf: no sound comes from it"
    assert said(witness, "home/deaf/street")[-1]["text"] == "street is away"
    assert "[error]" not in "\n".join(red.lines).lower()
    assert "missing" not in "\n".join(red.lines)


def test_the_flow_keeps_quiet_about_pauses_short_outages_repetitions_and_what_is_long_past(node_red, broker):
    broker.start("", "", "log_type all")
    witness = broker.witness()
    node_red(pause_s=3.0, deaf_s=3.0)

    def publish(topic, payload):
        text = payload if isinstance(payload, str) else json.dumps(payload)
        target = ("-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-t", f"urbandetect/street/{topic}", "-m", text)
        subprocess.run(["mosquitto_pub", *target], check=True, timeout=10)

    def event(label, phase, ago_s=0.0):
        start = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - ago_s))
        what = {"id": f"{label}-{ago_s}", "label": label, "phase": phase, "start": start, "end": None, "score": 0.9}
        publish("mic1/event", what | {"duration_s": 1.0, "node": "street", "source": "mic1"})

    publish("mic1/status", "online")
    event("siren", "start", ago_s=600)
    event("siren", "start")
    event("siren", "start")
    event("dog_bark", "start")
    event("drilling", "start")
    publish("mic1/label/drilling/state", "ON")
    for topic, away, back in (("mic1/label/drilling/state", "OFF", "ON"), ("mic1/status", "no_audio", "online")):
        publish(topic, away)
        time.sleep(1.0)
        publish(topic, back)
    event("drilling", "start")
    time.sleep(2.5)  # longer than either wait since it went away
    assert [noise["on"] for noise in said(witness, "home/noise/street/mic1/drilling")] == [True]
    publish("mic1/label/drilling/state", "OFF")
    heard_from(witness, "home/noise/street/mic1/drilling", '"on":false')
    assert [alarm["id"] for alarm in said(witness, "home/alarm")] == ["siren-0.0"]
    assert [noise["on"] for noise in said(witness, "home/noise/street/mic1/drilling")] == [True, False]
    assert [microphone["deaf"] for microphone in said(witness, "home/deaf/street/mic1")] == [False]
    publish("mic1/status", "no_audio")
    heard_from(witness, "home/deaf/street/mic1", '"deaf":true')
    publish("mic1/status", "online")
    heard_from(witness, "home/deaf/street/mic1", "street/mic1 hears")


def test_the_flow_has_one_broker_a_name_on_every_node_and_the_topics_its_page_names():
    nodes = json.loads(FLOW.read_text())
    assert len([node for node in nodes if node["type"] == "mqtt-broker"]) == 1
    assert all(node.get("name") or node["type"] == "tab" for node in nodes)
    known = {node["id"] for node in nodes}
    assert all(to in known for node in nodes for output in node.get("wires", []) for to in output)
    page = (ROOT / "docs" / "NODE-RED.md").read_text()
    rows = dict(re.findall(r"^\| `(home/[^`]+)` \| (yes|no) \|", page, re.MULTILINE))
    assert rows == {node["name"]: "yes" if node["retain"] == "true" else "no" for node in nodes if node["type"] == "mqtt out"}
    taken = re.findall(r"`(urbandetect/\+[^`]+)`", page)
    assert set(taken) == {node["topic"] for node in nodes if node["type"] == "mqtt in"}
