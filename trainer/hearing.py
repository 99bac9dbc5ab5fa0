"""What a model tells of a recording: its scores row by row, and the events the daemon's own tracker makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detector.audio.source import Floats
from detector.model import Description, Model, Threshold
from detector.tracker import Tracker

ROWS = 64
"""In one step: longer windows are no cheaper per row."""
QUICK = 16
"""Rows that the tracker is given at once: it passes over labels that do nothing in any of them."""


@dataclass(frozen=True)
class Told:
    """One event as a subscriber hears of it: told_s, when its `start` message can be sent; all in seconds from the begin."""

    label: str
    onset_s: float
    offset_s: float
    told_s: float
    score: float


def scores_of(model: Model, audio: Floats) -> Floats:
    """Scores of a recording heard as one fresh stream, [rows, labels]; audio: [samples] at the model's rate.

    The last row is filled up with silence, as the daemon does at the end of a file.
    """
    d = model.description
    rows = -(-len(audio) // d.hop)
    heard = np.zeros((1, d.context + rows * d.hop), np.float32)
    heard[0, d.context : d.context + len(audio)] = audio
    scores, state = [np.zeros((0, len(d.labels)), np.float32)], model.fresh_state(1)
    for first in range(0, rows, ROWS):
        window = heard[:, first * d.hop : d.context + min(rows, first + ROWS) * d.hop]
        new, state = model.step(window, state)
        scores.append(new[0])
    return np.concatenate(scores)


def told(scores: Floats, description: Description, thresholds: Mapping[str, Threshold] | None = None) -> list[Told]:
    """The events the daemon makes of these rows of scores, in order of onset; the thresholds are the model's unless given."""
    d = description
    tracker = Tracker(d.labels, thresholds or d.thresholds, d.hop, d.sample_rate)
    changes = []
    for first in range(0, len(scores), QUICK):
        part = scores[first : first + QUICK]
        changes += tracker.update(first * d.hop, part, np.zeros(len(part)))
    changes += tracker.close(len(scores) * d.hop)
    told_s: dict[str, float] = {}
    events: list[Told] = []
    for change in changes:
        if change.phase == "start":
            told_s[change.label] = change.offset / d.sample_rate  # the end of the row that opened it
        elif change.phase == "end":
            onset_s, offset_s = change.onset / d.sample_rate, change.offset / d.sample_rate
            events.append(Told(change.label, onset_s, offset_s, told_s[change.label], change.score))
    return sorted(events, key=lambda event: event.onset_s)
