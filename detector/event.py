"""The event: what the world is told, as one flat JSON object."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from detector.audio.level import dbfs, pressure_level
from detector.model import Description
from detector.tracker import Change

SCHEMA = 1


@dataclass(frozen=True)
class Origin:
    """Where events come from: node and source by name, the session, the model that heard, the microphone's calibration if any."""

    node: str
    source: str
    session: str
    model: Description
    calibration_db: float | None = None


def new_session() -> str:
    """A name for the time from opening a source to losing it."""
    return secrets.token_hex(6)


def describe(change: Change, origin: Origin, start: datetime, seq: int) -> dict[str, Any]:
    """The event as its JSON object. start: when its onset was, the same in every phase; seq: a running number per source.

    The id depends on session, label and onset alone: every phase of an event carries the same one, told again or not.
    """
    rate = origin.model.sample_rate
    duration_s = (change.offset - change.onset) / rate
    return {
        "schema": SCHEMA,
        "id": f"{origin.session}-{change.label}-{change.onset}",
        "phase": change.phase,
        "label": change.label,
        "score": round(change.score, 4),
        "score_mean": round(change.score_mean, 4),
        "start": timestamp(start),
        "end": timestamp(start + timedelta(seconds=duration_s)) if change.phase == "end" else None,
        "duration_s": round(duration_s, 3),
        "node": origin.node,
        "source": origin.source,
        "session": origin.session,
        "seq": seq,
        "level": {
            "dbfs": round(dbfs(change.mean_square), 1),
            "laeq": pressure_level(dbfs(change.mean_square_a), origin.calibration_db),
        },
        "threshold": change.threshold,
        "model": {"name": origin.model.name, "version": origin.model.version, "sha256": origin.model.sha256},
    }


def timestamp(moment: datetime) -> str:
    """UTC with milliseconds: 2026-11-22T06:15:03.218Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def encode(event: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False)
