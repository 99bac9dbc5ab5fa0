"""How the daemon is, in one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from detector.model import Model


def own_version() -> str:
    """The installed version, `0` where the package is run without being installed."""
    try:
        return version("urbandetect")
    except PackageNotFoundError:
        return "0"


def health(model: Model, uptime_s: float, dropped: int, sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `health` on the broker says; dropped: events that could not be told; sources: per source whether it is heard, its gaps
    and lost samples."""
    d = model.description
    return {
        "version": own_version(),
        "model": {"name": d.name, "version": d.version, "sha256": d.sha256},
        "provider": model.provider,
        "uptime_s": round(uptime_s),
        "dropped": dropped,
        "sources": {name: dict(facts) for name, facts in sources.items()},
    }
