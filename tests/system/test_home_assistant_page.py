"""What docs/HOME-ASSISTANT.md shows is what happens: its session on a broker, and automations of what is announced."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from detector.health import own_version
from detector.model import Model
from detector.publish.home_assistant import Place, devices

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "HOME-ASSISTANT.md").read_text(encoding="utf-8")
STREET = ROOT / "detector" / "demo" / "street.ogg"
REST = "..."
AUTOMATION = {"alias", "description", "triggers", "conditions", "actions", "mode", "max"}
STEPS = {  # https://www.home-assistant.io/docs/automation/: what each kind needs, and what it may have besides
    "trigger state": ({"entity_id"}, {"to", "from", "not_to", "not_from", "for"}),
    "condition template": ({"value_template"}, set()),
    "condition time": (set(), {"after", "before", "weekday"}),
    "action notify.notify": ({"data"}, set()),
}


def documented():
    """The session of the page: its command, and what it prints; a payload in JSON as an object, in which `...` stands for more."""
    [session] = re.findall(r"```\n\$ (mosquitto_sub .*?)```", PAGE, re.DOTALL)
    command, _, output = session.partition("\n")
    output = re.sub(r"\n +", "", output)
    output = re.sub(r",\.\.\.\]", f',"{REST}"]', output)
    output = re.sub(r",\.\.\.\}", f',"{REST}":null}}', output)
    return shlex.split(command), [parsed(line) for line in output.splitlines()]


def parsed(line):
    topic, payload = line.split(" ", 1)
    return topic, json.loads(payload) if payload.startswith("{") else payload


def equal(shown, real):
    """Whether something is as it is shown, but for what `...` leaves out."""
    if isinstance(shown, dict):
        some = {key: value for key, value in shown.items() if key != REST}
        return (some.keys() <= real.keys() if REST in shown else some.keys() == real.keys()) and all(
            equal(value, real[key]) for key, value in some.items()
        )
    if isinstance(shown, list) and shown[-1:] == [REST]:
        return shown[:-1] == real[: len(shown) - 1]
    return shown == real if not isinstance(shown, list) else len(shown) == len(real) and all(map(equal, shown, real))


def test_the_session_of_the_page_is_what_a_real_run_shows(broker, start, tmp_path):
    command, expected = documented()
    broker.start()
    place = command.index("-h")
    command[place : place + 2] = ["-h", "127.0.0.1", "-p", str(broker.port)]
    sub = start(*command, "-t", "$SYS/broker/version")
    sub.wait_for(lambda line: line.startswith("$SYS/broker/version"))
    settings = PAGE.split("```toml\n# detector.toml\n")[1].split("```")[0]

    def run(discovery):
        changed = settings.replace('discovery = "device"', f'discovery = "{discovery}"')
        (tmp_path / "detector.toml").write_text(changed.replace('host = "broker"', f'host = "127.0.0.1"\nport = {broker.port}'))
        return start("urbandetect", "run", "--input", STREET)

    def publish(payload):
        topic = "urbandetect/street/mic1/threshold/siren/set"
        subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", topic, "-m", payload], check=True, timeout=10)

    first = run("device")
    sub.wait_for(lambda line: "/config {" in line)
    sub.wait_for(lambda line: line.endswith("siren 0.98523"))
    first.wait_for_error("hearing")
    publish("0.8")
    sub.wait_for(lambda line: line.endswith("siren 0.8"))
    publish("loud")
    first.wait_for_error("is ignored")
    first.send(signal.SIGTERM)
    assert first.end() == 0
    run("off")
    sub.wait_for(lambda line: line == "urbandetect/street/mic1/threshold/siren (null)")
    sub.wait_for(lambda line: line.endswith("/config (null)"))
    seen = [parsed(line) for line in sub.lines if not line.startswith("$SYS")]
    for lines in (seen, expected):  # in these pairs either may be first
        lines[:2], lines[-2:] = sorted(lines[:2], key=lambda line: line[0]), sorted(lines[-2:], key=lambda line: line[0])
    assert [topic for topic, _ in seen] == [topic for topic, _ in expected]
    for (topic, shown), (_, real) in zip(expected, seen, strict=True):
        if isinstance(real, dict):
            assert len(real["components"]) == 22
            assert shown["device"]["sw_version"] == own_version() == shown["origin"]["sw_version"]
        assert equal(shown, real), topic


def test_the_automations_of_the_page_have_known_keys_and_name_entities_that_are_announced(shipped_model):
    yaml = pytest.importorskip("yaml", reason="needs packages: pip install -e '.[test]'")
    model = Model(shipped_model, "cpu").description
    [device] = devices(Place("urbandetect", "street", ("mic1",), model))
    entities = {component["default_entity_id"] for component in device["components"].values()}
    automations = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(alias: .*?)```", PAGE, re.DOTALL)]
    assert len(automations) == 3
    for automation in automations:
        assert {"alias", "triggers", "actions"} <= automation.keys() <= AUTOMATION
        assert automation.get("mode", "single") in ("single", "restart", "queued", "parallel")
        for part in ("trigger", "condition", "action"):
            for step in automation.get(f"{part}s", []):
                needs, may = STEPS[f"{part} {step[part]}"]
                assert needs <= step.keys() - {part} <= needs | may, automation["alias"]
                named = step.get("entity_id", [])
                assert set([named] if isinstance(named, str) else named) <= entities
                for value in (step.get("to", "on"), step.get("not_from", "on")):
                    assert isinstance(value, str)  # YAML reads a bare `on` as true
                for value in (step.get("for", "00:00:00"), step.get("after", "00:00:00"), step.get("before", "00:00:00")):
                    assert re.fullmatch(r"\d\d:\d\d:\d\d", value)  # YAML 1.1 reads a bare 22:00:00 as a number
    text = json.dumps(automations)
    assert set(re.findall(r"'(\w+)'", text)) <= set(model.labels)
    attributes = set(re.findall(r"attributes\.(\w+)", text))
    template = device["components"]["event"]["value_template"]
    assert attributes <= set(re.findall(r"'(\w+)':", template))
