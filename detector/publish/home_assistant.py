"""What Home Assistant is told so that it finds us: MQTT discovery messages, as functions of names and a model.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery; `device` needs 2024.12 or later, `component` any version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from detector.health import own_version
from detector.model import Description

LOWEST, STEP = 0.001, 0.001
"""Of a threshold: Home Assistant allows no finer step."""
ON_START = (
    "{% if value_json.phase == 'start' %}"
    "{{ {'event_type': value_json.label, 'score': value_json.score, 'threshold': value_json.threshold, "
    "'start': value_json.start, 'id': value_json.id} | to_json }}"
    "{% endif %}"
)
"""An event entity knows no end: what renders empty is dropped, and an `else` that said None would not be."""

Announced = Mapping[str, Mapping[str, str]]
"""What was published and retained: per topic the platform of each component in it, by key; none where the topic is one thing."""


@dataclass(frozen=True)
class Place:
    """Who announces. root, node, sources: as in the topics; model: what hears; calibrated: the sources whose level has a dBA."""

    root: str
    node: str
    sources: tuple[str, ...]
    model: Description
    calibrated: Collection[str] = ()

    @property
    def base(self) -> str:
        return f"{self.root}/{self.node}"

    def thresholds(self) -> dict[str, tuple[str, str]]:
        """Topic of each threshold's state -> its source and label; `/set` behind it is where another value is taken."""
        every = ((source, label) for source in self.sources for label in self.model.labels)
        return {f"{self.base}/{source}/threshold/{label}": (source, label) for source, label in every}


def discovery(place: Place, mode: str, prefix: str, old: Announced) -> dict[str, str]:
    """Topic -> payload, all retained, of everything there is now; mode: `device` or `component`.

    old: what was announced before. A component that has gone from a message that stays is named there by its platform alone, which
    removes it: to leave it out does not. What topics have gone altogether is for `gone` to tell.
    """
    messages: dict[str, str] = {}
    for device in devices(place):
        components = device.pop("components")
        if mode == "component":
            for key, component in components.items():
                topic = f"{prefix}/{component['platform']}/{device['device']['identifiers'][0]}/{plain(key)}/config"
                messages[topic] = _json(device | {k: v for k, v in component.items() if k != "platform"})
        else:
            topic = f"{prefix}/device/{device['device']['identifiers'][0]}/config"
            removed = {key: {"platform": platform} for key, platform in old.get(topic, {}).items() if key not in components}
            messages[topic] = _json(device | {"components": components | removed})
    return messages


def announced(place: Place, mode: str, prefix: str) -> Announced:
    """What `discovery` announces, and the thresholds beside it, to be remembered."""
    messages = discovery(place, mode, prefix, {})
    platforms = {
        topic: {key: component["platform"] for key, component in json.loads(payload).get("components", {}).items()}
        for topic, payload in messages.items()
    }
    return platforms | {topic: {} for topic in place.thresholds()}


def gone(old: Announced, new: Announced) -> list[str]:
    """Topics to be cleared with an empty retained payload."""
    return [topic for topic in old if topic not in new]


def devices(place: Place) -> list[dict[str, Any]]:
    """A device per source, each with its components; before them, with several sources, the node's own that they hang on."""
    node = _device(place, place.node, None)
    if len(place.sources) == 1:
        return [_source(place, place.sources[0], None)]
    online = {
        "platform": "binary_sensor",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
        "name": "Connection",
        "state_topic": f"{place.base}/status",
        "payload_on": "online",
        "payload_off": "offline",
    }
    components = {"connection": online | _names(node, place.node, "connection", online)}
    sources = [_source(place, source, node["identifiers"][0]) for source in place.sources]
    return [{"device": node, "origin": _origin(), "components": components}, *sources]


def _source(place: Place, source: str, via: str | None) -> dict[str, Any]:
    name = f"{place.node} {source}"
    device = _device(place, name, source) | ({"via_device": via} if via else {})
    running = {"topic": f"{place.base}/status"}
    components: dict[str, dict[str, Any]] = {
        "event": {
            "platform": "event",
            "name": "Sound event",
            "event_types": list(place.model.labels),
            "state_topic": f"{place.base}/{source}/event",
            "value_template": ON_START,
        },
        "level": {"platform": "sensor", "name": "Sound level", "state_class": "measurement"}
        | {"state_topic": f"{place.base}/{source}/level", "suggested_display_precision": 1}
        | (
            {"value_template": "{{ value_json.laeq }}", "unit_of_measurement": "dBA", "device_class": "sound_pressure"}
            if source in place.calibrated
            else {"value_template": "{{ value_json.dbfs }}", "unit_of_measurement": "dBFS"}
        ),
    }
    for label in place.model.labels:
        components[f"label_{label}"] = {
            "platform": "binary_sensor",
            "name": readable(label),
            "device_class": "sound",
            "state_topic": f"{place.base}/{source}/label/{label}/state",
        }
        topic = f"{place.base}/{source}/threshold/{label}"
        components[f"threshold_{label}"] = {
            "platform": "number",
            "name": f"{readable(label)} threshold",
            "entity_category": "config",
            "state_topic": topic,
            "command_topic": f"{topic}/set",
            "min": LOWEST,
            "max": 1,
            "step": STEP,
            "mode": "box",
            "availability": [running],  # it can be set while the microphone is gone
        }
    return {
        "device": device,
        "origin": _origin(),
        "availability": [running, {"topic": f"{place.base}/{source}/status", "payload_not_available": "no_audio"}],
        "availability_mode": "all",
        "components": {key: component | _names(device, name, key, component) for key, component in components.items()},
    }


def _device(place: Place, name: str, source: str | None) -> dict[str, Any]:
    levels = [*place.root.split("/"), place.node, *([source] if source is not None else [])]
    return {
        "identifiers": ["__".join(map(plain, levels))],  # `plain` has no `__`: no two lists of levels give one name
        "name": name,
        "manufacturer": "urbandetect",
        "model": f"{place.model.name} {place.model.version}",
        "sw_version": own_version(),
    }


def _names(device: dict[str, Any], name: str, key: str, component: dict[str, Any]) -> dict[str, str]:
    """What stays the same for as long as the topics do."""
    slug = re.sub(r"[^a-z0-9]+", "_", f"{name} {component['name']}".lower()).strip("_")
    return {"unique_id": f"{device['identifiers'][0]}__{plain(key)}", "default_entity_id": f"{component['platform']}.{slug}"}


def _origin() -> dict[str, str]:
    return {"name": "urbandetect", "sw_version": own_version()}


def readable(label: str) -> str:
    """`dog_bark` -> `Dog bark`."""
    words = label.replace("_", " ").strip() or label
    return words[0].upper() + words[1:]


def plain(name: str) -> str:
    """A name of letters, digits, `-` and single `_` within it, as discovery topics allow; another one for every name."""
    if re.fullmatch(r"[a-zA-Z0-9-]+(_[a-zA-Z0-9-]+)*", name):
        return name
    return re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def asked(payload: bytes) -> float | None:
    """The threshold that somebody asks for, None when it is no number from LOWEST to 1."""
    try:
        value = round(float(payload.decode("ascii")), 4) if len(payload) <= 32 else 0.0
    except ValueError:
        return None
    return value if LOWEST <= value <= 1 else None


def _json(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
