"""The model: does it load, where does it run, is it quick enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from detector.config import Settings
from detector.doctor.check import Check, failed, skipped
from detector.engine import Engine
from detector.errors import ConfigError, ModelError
from detector.model import GPU_NODES, Model, Threshold, shipped
from detector.profile import Profile, in_force, profiles

NAMES = MODEL, THRESHOLDS, PROVIDER, SPEED = ("model", "thresholds", "provider", "speed")
TRY_S = 0.5
"""How long the model is timed, after a first step that takes longer."""
SPARE = 2.0
"""A model that is not this much quicker than real time has nothing left for other work on the computer."""


def examine(settings: Settings, where: str) -> Iterator[Check]:
    """The four checks of NAMES."""
    path = Path(settings.model.path) if settings.model.path else shipped("urban.onnx")
    missing: ConfigError | None = None
    try:
        try:
            model = Model(path, settings.model.provider)
        except ModelError:
            raise
        except ConfigError as error:  # the GPU: the model may be right all the same
            missing, model = error, Model(path, "cpu")
    except ConfigError as error:
        yield failed(MODEL, error)
        yield from skipped(NAMES[1:], "the model does not load")
        return
    d = model.description
    yield Check(MODEL, "ok", f"{d.name} {d.version} from {path}: {len(d.labels)} labels ({', '.join(d.labels)})")
    try:
        yield _thresholds(in_force(profiles(settings, d.thresholds, where), datetime.now()), d.thresholds)
    except ConfigError as error:
        yield failed(THRESHOLDS, error)
    yield failed(PROVIDER, missing) if missing else _provider(model, settings.model.provider)
    yield judge_speed(step_s(model, len(settings.source)), d.hop / d.sample_rate, len(settings.source))


def _thresholds(now: Profile, own: Mapping[str, Threshold]) -> Check:
    muted = now.muted
    changed = ", ".join(label for label in own if now.thresholds[label] != own[label] and label not in muted)
    what = "the model's own" + (f", changed for {changed}" if changed else "")
    if now.name:
        what += f"; profile {now.name} is in force" + (f" and mutes {', '.join(muted)}" if muted else "")
    return Check(THRESHOLDS, "ok", what)


def step_s(model: Model, streams: int) -> float:
    """Seconds that one step of one hop takes, the median of TRY_S."""
    d, engine = model.description, Engine(model, streams)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, d.context + d.hop).astype(np.float32)
    took_s: list[float] = []
    until_s = time.monotonic() + TRY_S
    while len(took_s) < 3 or time.monotonic() < until_s:
        began_s = time.perf_counter()
        engine.step(range(streams), [noise] * streams)
        took_s.append(time.perf_counter() - began_s)
    return float(np.median(took_s))


def judge_speed(step_s: float, hop_s: float, sources: int) -> Check:
    """step_s: what a step of all sources takes; hop_s: how much sound it is of."""
    times = hop_s / step_s
    of = "its source" if sources == 1 else f"{sources} sources"
    what = f"{1000 / times:.1f} ms for a second of {of}: {times:.0f} times real time"
    if times < 1:
        what = f"{1000 / times:.0f} ms for a second of {of}: slower than real time, windows are dropped"
        return Check(SPEED, "fail", what, "use a smaller model, a GPU, fewer sources or a quicker computer")
    if times < SPARE:
        return Check(SPEED, "warn", what, "end other programs, or use a smaller model: there is no time to spare")
    return Check(SPEED, "ok", what)


def _provider(model: Model, wanted: str) -> Check:
    if model.provider == "cpu" and wanted == "auto" and any(Path(node).exists() for node in GPU_NODES):
        advice = 'install a driver and urbandetect\'s extra `cuda`, or set model.provider = "cpu"'
        return Check(PROVIDER, "warn", "cpu: this computer has a GPU that cannot be used", advice)
    return Check(PROVIDER, "ok", f"{model.provider} ({wanted} was asked for)")
