"""Figures for Prometheus: counted by the daemon's loop, written out when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from detector.audio.level import SILENCE_DBFS
from detector.audio.source import Reason

STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Buckets of a step's time: from an idle desktop to the half second a step may take (pipeline.STEP_S)."""
LATENCY_S = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Buckets of an event's latency: a hop is about 0.1 s, `min_on_s` seldom more than a second."""
GAPS = (*filter(None, get_args(Reason)), "lost", "asleep", "rescan")
"""Every reason for which sound may be missing. Each is told from the beginning, as 0: what begins at 1 has not increased."""

Rows = Iterable[tuple[Mapping[str, str], float]]


class Histogram:
    """Counts of values at or below each bound, their sum and their number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum, self.count = bounds, [0] * len(bounds), 0.0, 0

    def add(self, value: float) -> None:
        for i, bound in enumerate(self.bounds):
            self.counts[i] += value <= bound
        self.sum += value
        self.count += 1


class Figures:
    """What the daemon did. Only its loop writes; every key is there from the beginning, so that any thread may read."""

    def __init__(self, sources: Sequence[str], labels: Sequence[str], row_s: float) -> None:
        """row_s: seconds of sound in a row of scores."""
        self._row_s = row_s
        self._samples = dict.fromkeys(sources, 0)
        self._heard_s = dict.fromkeys(sources, 0.0)
        self._level = dict.fromkeys(sources, SILENCE_DBFS)
        self._events = {(source, label): 0 for source in sources for label in labels}
        self._active = dict.fromkeys(self._events, 0)
        self._steps, self._late = Histogram(STEP_S), Histogram(LATENCY_S)
        self._realtime = 0.0

    def block(self, source: str, samples: int) -> None:
        self._samples[source] += samples
        self._heard_s[source] = time.time()

    def level(self, source: str, dbfs: float) -> None:
        self._level[source] = dbfs

    def step(self, took_s: float, rows: int) -> None:
        self._steps.add(took_s)
        self._realtime = took_s / (rows * self._row_s)

    def event(self, event: Mapping[str, Any]) -> None:
        key = event["source"], event["label"]
        if event["phase"] == "start":
            self._events[key] += 1
            decided_s = datetime.fromisoformat(event["start"]).timestamp() + event["duration_s"]
            self._late.add(max(0.0, datetime.now(UTC).timestamp() - decided_s))
        self._active[key] = int(event["phase"] != "end")

    def text(self, health: Mapping[str, Any]) -> str:
        """The exposition format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). health: what `health` says now."""
        out: list[str] = []
        model, sources = health["model"], health["sources"]
        build = {"version": health["version"], "model": model["name"], "model_version": model["version"]}
        _write(out, "build_info", "gauge", "What runs.", [(build | {"provider": health["provider"]}, 1)])
        _write(out, "uptime_seconds", "gauge", "Since the daemon began.", [({}, health["uptime_s"])])
        up = [({"source": name}, float(facts["hearing"])) for name, facts in sources.items()]
        _write(out, "source_up", "gauge", "1 while sound comes from it.", up)
        silent = [({"source": name}, float(facts["silent"])) for name, facts in sources.items()]
        _write(out, "source_silent", "gauge", "1 while it gives digital silence: muted or dead.", silent)
        _write(out, "audio_samples_total", "counter", "Samples heard, at the source's rate.", _by_source(self._samples))
        gaps = [
            ({"source": name, "reason": reason}, float(facts["gaps"].get(reason, 0)))
            for name, facts in sources.items()
            for reason in dict.fromkeys((*GAPS, *facts["gaps"]))
        ]
        _write(out, "audio_gaps_total", "counter", "How often sound was missing.", gaps)
        lost = [({"source": name}, float(facts["lost_samples"])) for name, facts in sources.items()]
        _write(out, "audio_lost_samples_total", "counter", "Samples that were missing.", lost)
        windows = [({"source": name}, float(facts["dropped_windows"])) for name, facts in sources.items()]
        _write(out, "windows_dropped_total", "counter", "Rows never scored: the computer is too slow.", windows)
        heard = {name: at for name, at in self._heard_s.items() if at}
        _write(out, "audio_last_block_timestamp_seconds", "gauge", "When sound last came.", _by_source(heard))
        _write(out, "level_dbfs", "gauge", "Level of the last step's sound; a full-scale sine is 0.", _by_source(self._level))
        _write(out, "hop_seconds", "gauge", "Sound in a row of scores.", [({}, self._row_s)])
        _histogram(out, "step_duration_seconds", "A call of the model, all sources at once.", self._steps)
        _write(out, "realtime_factor", "gauge", "Computing time by time of sound, of the last step.", [({}, self._realtime)])
        _histogram(out, "event_latency_seconds", "From the end of the sound that opened an event to its message.", self._late)
        _write(out, "events_total", "counter", "Events begun.", _by_label(self._events))
        _write(out, "event_active", "gauge", "1 while the event lasts.", _by_label(self._active))
        if mqtt := health.get("mqtt"):
            _write(out, "mqtt_connected", "gauge", "1 while the broker is connected.", [({}, float(mqtt["connected"]))])
            _write(out, "mqtt_connections_total", "counter", "Connections made to the broker.", [({}, mqtt["connections"])])
            results = [({"result": result}, float(mqtt[result])) for result in ("accepted", "refused")]
            _write(out, "mqtt_published_total", "counter", "Answers of the broker to what was published.", results)
        if outbox := health.get("outbox"):
            _write(out, "outbox_messages", "gauge", "Events that wait for the broker.", [({}, outbox["messages"])])
            _write(out, "outbox_oldest_seconds", "gauge", "Age of the oldest of them.", [({}, outbox["oldest_s"])])
            _write(out, "outbox_dropped_total", "counter", "Events given up: too old or too many.", [({}, outbox["dropped"])])
        return "\n".join(out) + "\n"


def _by_source(values: Mapping[str, float]) -> Rows:
    return [({"source": source}, value) for source, value in values.items()]


def _by_label(values: Mapping[tuple[str, str], int]) -> Rows:
    return [({"source": source, "label": label}, value) for (source, label), value in values.items()]


def _write(out: list[str], name: str, kind: str, what: str, rows: Rows) -> None:
    out += [f"# HELP urbandetect_{name} {what}", f"# TYPE urbandetect_{name} {kind}"]
    out += [f"urbandetect_{name}{_labels(labels)} {_number(value)}" for labels, value in rows]


def _histogram(out: list[str], name: str, what: str, values: Histogram) -> None:
    count = values.count
    out += [f"# HELP urbandetect_{name} {what}", f"# TYPE urbandetect_{name} histogram"]
    buckets = [*zip(map(_number, values.bounds), values.counts, strict=True), ("+Inf", count)]
    out += [f'urbandetect_{name}_bucket{{le="{bound}"}} {min(below, count)}' for bound, below in buckets]
    out += [f"urbandetect_{name}_sum {_number(values.sum)}", f"urbandetect_{name}_count {count}"]


def _labels(labels: Mapping[str, str]) -> str:
    escaped = ((name, str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items())
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}" if labels else ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
