"""Who looks on while the daemon hears: the page, clips, score logs. Told in the daemon's loop, where nothing may wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.level import dbfs
from detector.audio.source import Block, Floats
from detector.errors import UrbandetectError
from detector.model import Threshold
from detector.tracker import Change


@dataclass(frozen=True)
class Sound:
    """The new sound of a step of one source and its scores: views that last until the next step.

    first: sample of the session, at the model's rate, where it begins; ends_s: UTC of the first row's end, in seconds since 1970;
    samples: [k * hop]; scores: [k, labels]; mean_squares: [k].
    """

    source: str
    session: str
    first: int
    ends_s: float
    samples: Floats
    scores: Floats
    mean_squares: NDArray[np.float64]

    @property
    def level_dbfs(self) -> float:
        return dbfs(float(self.mean_squares.mean()))

    def kept(self) -> Sound:
        """The same for another thread: what it was made of is overwritten."""
        return replace(self, samples=self.samples.copy(), scores=self.scores.copy())


class Observer:
    """Every method returns at once and raises nothing; an observer overrides what it wants to know."""

    def start(self) -> None:
        """After the first `look`."""

    def begin(self, source: str, session: str, rate: int) -> None:
        """A session of this source, at so many samples a second, counted from 0."""

    def block(self, source: str, block: Block) -> None:
        """What has come, before the model hears it."""

    def stepped(self, took_s: float, sounds: Sequence[Sound]) -> None:
        """A call of the model, and what it heard."""

    def more(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """What it adds to an event that is about to be told."""
        return {}

    def event(self, event: dict[str, Any], change: Change) -> None:
        """As it is told, and in samples at the model's rate."""

    def end(self, source: str) -> None:
        """Its session is over, its events are closed."""

    def look(self, health: Mapping[str, Any], stages: Mapping[str, str]) -> None:
        """How the daemon is, every second: as `health` says it, and each stage in words."""

    def use(self, source: str, thresholds: Mapping[str, Threshold]) -> None:
        """These are in use now, of this source, from its next row on; `on` is above 1 where a profile mutes a label."""

    def wanted(self) -> Mapping[str, Threshold] | None:
        """Other thresholds, should somebody have asked for them since the last call."""
        return None

    def facts(self) -> Mapping[str, Any]:
        """For `health`."""
        return {}

    def stop(self) -> UrbandetectError | None:
        """Nothing more will come: finish soon. What it was to write and has not, if there is any."""
        return None
