"""The discovery messages against Home Assistant's documented schema, and against its own where it is installed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from detector.config import HomeAssistantSettings, OutboxSettings, Settings, announced_path, load_settings
from detector.errors import ConfigError
from detector.model import Description, Threshold
from detector.publish import announcer as announcer_module
from detector.publish.announcer import Announcer
from detector.publish.home_assistant import ON_START, Place, announced, asked, devices, discovery, gone, plain, readable

LABELS = ("dog_bark", "siren")
MODEL = Description(
    name="urban",
    version="0.1.0",
    sample_rate=16000,
    hop=1600,
    context=800,
    labels=LABELS,
    thresholds=dict.fromkeys(LABELS, Threshold(0.5, 0.25, 0.1, 0.2)),
    clip_pooling="mean",
    properties={},
    sha256="ab",
)
ONE = Place("urbandetect", "street", ("mic1",), MODEL)
TWO = Place("urbandetect", "street", ("mic1", "yard"), MODEL, calibrated=("yard",))

DEVICE_KEYS = {"identifiers", "connections", "name", "manufacturer", "model", "sw_version", "via_device"}
COMMON = {"platform", "unique_id", "default_entity_id", "name", "state_topic", "value_template"}
COMMON |= {"availability", "availability_mode", "entity_category", "device_class"}
OF_PLATFORM = {  # of https://www.home-assistant.io/integrations/mqtt/ and its pages event, sensor, binary_sensor, number
    "event": ({"event_types"}, set()),
    "sensor": (set(), {"unit_of_measurement", "state_class", "suggested_display_precision"}),
    "binary_sensor": (set(), {"payload_on", "payload_off"}),
    "number": ({"command_topic"}, {"min", "max", "step", "mode"}),
}
CLASSES = {"event": {None}, "sensor": {None, "sound_pressure"}, "binary_sensor": {"sound", "connectivity"}, "number": {None}}


def messages(place, mode="device", old=None):
    return {topic: json.loads(payload) for topic, payload in discovery(place, mode, "homeassistant", old or {}).items()}


def components(place):
    return [component for device in devices(place) for component in device["components"].values()]


def topics(part):
    """Every topic a message names."""
    if isinstance(part, dict):
        own = [value for key, value in part.items() if key == "topic" or key.endswith("_topic")]
        return own + [topic for value in part.values() for topic in topics(value)]
    return [topic for value in part for topic in topics(value)] if isinstance(part, list) else []


def check_component(platform, component):
    needs, allows = OF_PLATFORM[platform]
    assert {"unique_id", "name", "state_topic"} | needs <= component.keys() <= COMMON | needs | allows
    assert component.get("device_class") in CLASSES[platform]
    assert re.fullmatch(rf"{platform}\.[a-z0-9]+(_[a-z0-9]+)*", component["default_entity_id"])


def check_device(device):
    assert device["identifiers"]
    assert device.keys() <= DEVICE_KEYS


def check_availability(message):
    assert message.get("availability_mode", "all") == "all"
    for one in message.get("availability", []):
        assert one.keys() <= {"topic", "payload_available", "payload_not_available", "value_template"}


@pytest.mark.parametrize("place", [ONE, TWO], ids=["one source", "two"])
def test_a_device_message_is_what_home_assistant_documents(place):
    for topic, message in messages(place).items():
        assert re.fullmatch(r"homeassistant/device/[a-zA-Z0-9_-]+/config", topic)
        assert {"device", "origin", "components"} <= message.keys()
        assert message.keys() <= {"device", "origin", "components", "availability", "availability_mode"}
        assert message["origin"].keys() <= {"name", "sw_version", "support_url"}
        check_device(message["device"])
        check_availability(message)
        for component in message["components"].values():
            check_component(component["platform"], component)
            check_availability(component)


@pytest.mark.parametrize("place", [ONE, TWO], ids=["one source", "two"])
def test_a_message_per_entity_is_what_home_assistant_documents(place):
    told = messages(place, "component")
    for topic, message in told.items():
        platform = re.fullmatch(r"homeassistant/(\w+)/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config", topic)[1]
        check_device(message["device"])
        check_availability(message)
        check_component(platform, {key: value for key, value in message.items() if key not in ("device", "origin")})
    assert len(told) == len(components(place))


@pytest.mark.parametrize("place", [ONE, TWO], ids=["one source", "two"])
@pytest.mark.parametrize("mode", ["device", "component"])
def test_home_assistant_itself_accepts_every_message(place, mode, tmp_path):
    pytest.importorskip("homeassistant", reason="needs homeassistant 2024.12 or later, in an environment of its own")
    from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA
    from homeassistant.core import HomeAssistant

    async def check():
        HomeAssistant(str(tmp_path))  # its templates ask for one
        for topic, message in messages(place, mode).items():
            if mode == "component":
                check_part(topic.split("/")[1], message)
                continue
            DEVICE_DISCOVERY_SCHEMA(message)
            shared = {key: message[key] for key in ("device", "origin", "availability", "availability_mode") if key in message}
            for component in message["components"].values():
                check_part(component["platform"], shared | {key: value for key, value in component.items() if key != "platform"})

    def check_part(platform, part):
        accepted = import_module(f"homeassistant.components.mqtt.{platform}").DISCOVERY_SCHEMA(part)
        assert part.keys() <= accepted.keys()  # what it does not know it takes away

    asyncio.run(check())


def test_each_label_is_an_event_a_sound_and_a_threshold_and_has_a_name_to_read():
    (device,) = devices(ONE)
    assert device["components"]["event"]["event_types"] == list(LABELS)
    sound, number = device["components"]["label_dog_bark"], device["components"]["threshold_dog_bark"]
    assert (sound["name"], sound["default_entity_id"]) == ("Dog bark", "binary_sensor.street_mic1_dog_bark")
    assert (number["name"], number["min"], number["max"]) == ("Dog bark threshold", 0.001, 1)
    assert device["device"]["name"] == "street mic1"
    assert "via_device" not in device["device"]


def test_several_sources_hang_on_the_node_which_is_announced_before_them():
    node, *sources = devices(TWO)
    assert node["device"]["name"] == "street"
    assert [device["device"]["via_device"] for device in sources] == node["device"]["identifiers"] * 2
    assert next(iter(messages(TWO))).endswith("/urbandetect__street/config")


def test_a_second_source_changes_no_entity_of_the_first():
    assert devices(TWO)[1]["components"] == devices(ONE)[0]["components"]


def test_only_a_calibrated_source_has_a_sound_pressure():
    _, mic1, yard = (device["components"].get("level", {}) for device in devices(TWO))
    assert (mic1["unit_of_measurement"], mic1.get("device_class"), mic1["value_template"]) == (
        "dBFS",
        None,
        "{{ value_json.dbfs }}",
    )
    assert (yard["unit_of_measurement"], yard["device_class"]) == ("dBA", "sound_pressure")
    assert yard["value_template"] == "{{ value_json.laeq }}"


def test_a_sound_is_unavailable_without_the_daemon_or_its_microphone_and_a_threshold_only_without_the_daemon():
    (device,) = devices(ONE)
    assert [one["topic"] for one in device["availability"]] == ["urbandetect/street/status", "urbandetect/street/mic1/status"]
    assert device["availability"][1]["payload_not_available"] == "no_audio"
    assert [one["topic"] for one in device["components"]["threshold_siren"]["availability"]] == ["urbandetect/street/status"]


@pytest.mark.parametrize("phase", ["start", "update", "end"])
def test_only_the_start_of_an_event_is_one_for_home_assistant(phase):
    jinja2 = pytest.importorskip("jinja2", reason="needs jinja2")
    environment = jinja2.Environment()
    environment.filters["to_json"] = json.dumps
    event = {
        "phase": phase,
        "label": "siren",
        "score": 0.9,
        "threshold": 0.5,
        "start": "2026-11-22T06:15:03.218Z",
        "id": "a-siren-1",
    }
    shown = environment.from_string(ON_START).render(value_json=event)
    if phase == "start":
        expected = {"event_type": "siren", "score": 0.9, "threshold": 0.5, "start": "2026-11-22T06:15:03.218Z", "id": "a-siren-1"}
        assert json.loads(shown) == expected
    else:
        assert shown == ""


def test_unique_ids_are_unique_and_the_same_after_every_start():
    ids = [component["unique_id"] for component in components(TWO)]
    assert len(set(ids)) == len(ids) == 1 + 2 * (2 + 2 * len(LABELS))
    assert "urbandetect__street__mic1__label_dog_bark" in ids
    assert discovery(TWO, "device", "homeassistant", {}) == discovery(TWO, "device", "homeassistant", {})


@pytest.mark.parametrize("name", ["mic.1", "mic 1", "Hof", "Höf", "a_b", "a__b", "_a", "a_", "日本", "-", "mic-1", "a" * 64])
def test_any_name_becomes_letters_that_a_discovery_topic_allows(name):
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", plain(name))
    assert "__" not in plain(name)


def test_no_two_names_become_one():
    names = ["mic.1", "mic 1", "mic-1", "mic_1", "mic__1", "_mic_1", "mic_1_", "日本", "日木"]
    assert len({plain(name) for name in names}) == len(names)
    places = [
        Place("urbandetect", node, (source,), MODEL) for node, source in [("a_b", "c"), ("a", "b_c"), ("a__b", "c"), ("a", "b__c")]
    ]
    assert len({topic for place in places for topic in messages(place)}) == len(places)


def test_labels_are_read_as_words():
    assert [readable(label) for label in ("dog_bark", "siren", "x", "_")] == ["Dog bark", "Siren", "X", "_"]


@pytest.mark.parametrize(
    ("payload", "value"),
    [(b"0.7", 0.7), (b"1", 1.0), (b" 0.62 ", 0.62), (b"1e-2", 0.01)]
    + [
        (wrong, None)
        for wrong in (b"", b"0", b"-1", b"1.01", b"nan", b"inf", b"loud", b"\xff", b"0," * 9, b"0" * 33, b"1" * 10_000)
    ],
)
def test_only_a_number_above_zero_and_at_most_one_is_a_threshold(payload, value):
    assert asked(payload) == value


def test_what_is_gone_from_a_device_is_named_by_its_platform_alone_and_whole_topics_are_cleared():
    before = announced(TWO, "device", "homeassistant")
    fewer = Place("urbandetect", "street", ("mic1",), Description(**vars(MODEL) | {"labels": ("siren",)}))
    now = discovery(fewer, "device", "homeassistant", before)
    (message,) = map(json.loads, now.values())
    assert message["components"]["label_dog_bark"] == {"platform": "binary_sensor"}
    assert message["components"]["threshold_dog_bark"] == {"platform": "number"}
    cleared = gone(before, announced(fewer, "device", "homeassistant"))
    assert {topic for topic in cleared if "/device/" in topic} == {
        "homeassistant/device/urbandetect__street/config",
        "homeassistant/device/urbandetect__street__yard/config",
    }
    assert "urbandetect/street/yard/threshold/siren" in cleared
    assert "urbandetect/street/mic1/threshold/dog_bark" in cleared
    assert "urbandetect/street/mic1/threshold/siren" not in cleared


@pytest.fixture
def now(monkeypatch):
    """The clock that an Announcer sees; a list of one."""
    moment = [1000.0]
    monkeypatch.setattr(announcer_module.time, "monotonic", lambda: moment[0])
    return moment


def announcer(tmp_path, place=ONE, mode="device"):
    return Announcer(HomeAssistantSettings(mode), place, tmp_path / "outbox.announced.json")


def test_a_flood_of_births_is_answered_once_in_ten_seconds_at_most(tmp_path, now):
    told = announcer(tmp_path)
    assert told.due()
    answers = []
    for _ in range(6000):  # a minute
        now[0] += 0.01
        told.hear("homeassistant/status", b"online")
        answers += [now[0]] if told.due() else []
    assert len(answers) in (5, 6)
    assert min(later - earlier for earlier, later in pairwise(answers)) >= 9.99
    told.hear("homeassistant/status", b"offline")
    now[0] += 20
    told.due()
    now[0] += 20
    assert not told.due()


def test_a_flood_of_thresholds_is_one_wish_each_and_a_line_a_minute(tmp_path, now, caplog):
    caplog.set_level(logging.INFO)
    told = announcer(tmp_path)
    for i in range(1000):
        now[0] += 0.06
        told.hear("urbandetect/street/mic1/threshold/siren/set", b"0.5" if i % 2 else b"0.6")
        told.hear("urbandetect/street/mic1/threshold/siren/set", b"rubbish \x1b[31m")
        told.hear("urbandetect/street/mic1/threshold/unknown/set", b"0.5")
        assert told.wishes() == {("mic1", "siren"): 0.5 if i % 2 else 0.6}
    assert told.wishes() == {}
    assert len(caplog.records) <= 4
    assert "\x1b" not in caplog.text


def test_what_is_gone_is_cleared_first_and_forgotten_when_the_broker_has_it(tmp_path, now):
    first = announcer(tmp_path, TWO)
    first.due()
    assert first.settle() == []
    again = announcer(tmp_path, ONE)
    cleared = again.due()
    assert set(cleared.values()) == {""}
    assert again.settle() == []
    assert again.due() == {}
    now[0] += 2.1
    assert "mic1" in str(again.due().keys())
    assert set(again.settle()) == set(cleared)
    assert announcer(tmp_path, ONE).due().keys() == {"homeassistant/device/urbandetect__street__mic1/config"}


def test_killed_before_the_broker_had_it_the_next_start_clears_it_again(tmp_path, now):
    announcer(tmp_path, TWO).due()
    assert "" in announcer(tmp_path, ONE).due().values()
    assert "" in announcer(tmp_path, ONE).due().values()


def test_off_clears_everything_subscribes_to_nothing_and_leaves_no_file(tmp_path, now):
    announcer(tmp_path, TWO, "component").due()
    off = announcer(tmp_path, TWO, "off")
    assert off.filters == []
    assert set(off.due().values()) == {""}
    now[0] += 2.1
    assert off.due() == {}
    off.settle()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00"])
def test_a_memory_that_is_damaged_is_said_and_announces_all_the_same(tmp_path, now, caplog, text):
    (tmp_path / "outbox.announced.json").write_text(text)
    told = announcer(tmp_path)
    assert told.due()
    assert "cannot be read" in caplog.text


def test_a_disk_that_takes_nothing_is_said_and_announces_all_the_same(tmp_path, now, caplog):
    (tmp_path / "file").write_text("")
    told = Announcer(HomeAssistantSettings("device"), ONE, tmp_path / "file" / "announced.json")
    assert told.due()
    assert "cannot be" in caplog.text


def test_every_topic_in_a_message_is_below_our_own():
    for place in (ONE, TWO):
        for mode in ("device", "component"):
            for message in messages(place, mode).values():
                assert all(topic.startswith("urbandetect/street/") for topic in topics(message))


def test_settings_that_cannot_be_are_named(tmp_path):
    (tmp_path / "a.toml").write_text('[home_assistant]\ndiscovery = "on"')
    with pytest.raises(ConfigError, match=r"home_assistant\.discovery = 'on'; one of off, device, component"):
        load_settings(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('[home_assistant]\nprefix = "home/#"')
    with pytest.raises(ConfigError, match=r"home_assistant\.prefix = '#' cannot stand in an MQTT topic"):
        load_settings(tmp_path / "b.toml")


def test_what_was_told_is_remembered_beside_the_outbox():
    assert announced_path(Settings(outbox=OutboxSettings("/state/outbox.db"))) == Path("/state/outbox.announced.json")
