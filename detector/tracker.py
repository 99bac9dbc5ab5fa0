"""Scores -> onsets and offsets. Pure: no clock, no I/O; every time is a sample index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats
from detector.model import Threshold

Phase = Literal["start", "update", "end"]
NOTHING = (0.0, 0.0, 0.0, 0)
"""Of scores, squares, A-weighted squares and rows."""


@dataclass(frozen=True)
class Change:
    """What became of an event: it began, lasts or ended.

    onset, offset: sample indexes since the session began (offset: the end so far); score, score_mean: peak and mean so far;
    mean_square, mean_square_a: of its samples so far, unweighted and A-weighted; threshold: the score that opened it.
    """

    phase: Phase
    label: str
    onset: int
    offset: int
    score: float
    score_mean: float
    mean_square: float
    threshold: float
    mean_square_a: float = 0.0


@dataclass
class _Track:
    """One label: how long it has been above or below, and the event it may be in."""

    label: str
    on: float = 1.0
    off: float = 1.0
    rows_on: int = 1
    rows_off: int = 1
    cooldown: int = 0
    cool_at: int = 0
    open: bool = False
    opened_at: float = 1.0
    onset: int = 0
    offset: int = 0
    updated: int = 0
    above: int = 0
    below: int = 0
    peak: float = 0.0
    score_sum: float = 0.0
    square_sum: float = 0.0
    weighted_sum: float = 0.0
    rows: int = 0
    pending: tuple[float, float, float, int] = NOTHING

    def change(self, phase: Phase) -> Change:
        rows = max(1, self.rows)
        return Change(
            phase,
            self.label,
            self.onset,
            self.offset,
            self.peak,
            self.score_sum / rows,
            self.square_sum / rows,
            self.opened_at,
            self.weighted_sum / rows,
        )


class Tracker:
    """Hysteresis per label: `on` reached for min_on_s opens an event at the first of those rows, less than `off` for min_off_s
    closes it at the end of the last row that was not. Scores between the two levels keep an event open and never open one.

    labels: in the order of the scores' columns; hop, rate: samples a row, samples a second; update_s: how often a lasting event is
    told again, 0 never.
    """

    def __init__(
        self, labels: Sequence[str], thresholds: Mapping[str, Threshold], hop: int, rate: int, update_s: float = 0.0
    ) -> None:
        self._hop, self._rate = hop, rate
        self._update = round(update_s * rate)
        self._tracks = [_Track(label) for label in labels]
        self.use(thresholds)

    def use(self, thresholds: Mapping[str, Threshold]) -> None:
        """Other thresholds from the next row on; open events stay open until the new ones close them."""

        def rows(seconds: float) -> int:
            return max(1, math.ceil(seconds * self._rate / self._hop - 1e-9))

        for track in self._tracks:
            t = thresholds[track.label]
            track.on, track.off, track.rows_on, track.rows_off = t.on, t.off, rows(t.min_on_s), rows(t.min_off_s)
            track.cooldown = round(t.cooldown_s * self._rate)
        self._on = np.array([track.on for track in self._tracks], np.float32)

    def update(
        self,
        first: int,
        scores: Floats,
        mean_squares: Sequence[float] | NDArray[np.float64],
        weighted: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> list[Change]:
        """Rows of scores [k, labels], the first beginning at sample `first`; mean_squares: [k], of each row's hop; weighted: of
        the same A-weighted, none of it when not given."""
        weighted = np.zeros(len(scores)) if weighted is None else weighted
        changes: list[Change] = []
        busy = {i for i, track in enumerate(self._tracks) if track.open or track.above}
        busy.update(np.flatnonzero((scores >= self._on).any(axis=0)).tolist())
        for row in range(len(scores) if busy else 0):
            begin = first + row * self._hop
            for i in sorted(busy):
                self._advance(
                    self._tracks[i], float(scores[row, i]), float(mean_squares[row]), float(weighted[row]), begin, changes
                )
        return changes

    def begin(self) -> None:
        """Another session: samples are counted from 0 again, so no cool-down reaches into it."""
        for track in self._tracks:
            track.cool_at = 0

    def close(self, at: int) -> list[Change]:
        """The sound ends at sample `at`: so do all events, and what was about to open is forgotten."""
        changes = []
        for track in self._tracks:
            if track.open:
                track.offset = max(track.onset, min(track.offset, at))
                changes.append(track.change("end"))
                track.cool_at = track.offset + track.cooldown
            track.open, track.above, track.below = False, 0, 0
        return changes

    def _advance(self, track: _Track, score: float, mean_square: float, weighted: float, begin: int, changes: list[Change]) -> None:
        end = begin + self._hop
        if not track.open:
            if not score >= track.on or begin < track.cool_at:
                track.above = 0
                return
            if track.above == 0:
                track.onset, track.peak = begin, 0.0
                track.score_sum, track.square_sum, track.weighted_sum, track.rows = NOTHING
            track.above += 1
            self._count(track, score, mean_square, weighted)
            track.offset = end
            if track.above >= track.rows_on:
                track.open, track.above, track.below, track.updated, track.opened_at = True, 0, 0, end, track.on
                track.pending = NOTHING
                changes.append(track.change("start"))
            return
        if score >= track.off:
            score_sum, square_sum, weighted_sum, rows = track.pending
            track.score_sum += score_sum
            track.square_sum += square_sum
            track.weighted_sum += weighted_sum
            track.rows += rows
            track.pending = NOTHING
            self._count(track, score, mean_square, weighted)
            track.offset, track.below = end, 0
        else:
            track.below += 1
            score_sum, square_sum, weighted_sum, rows = track.pending
            track.pending = (score_sum + score, square_sum + mean_square, weighted_sum + weighted, rows + 1)
            if track.below >= track.rows_off:
                track.open, track.cool_at = False, track.offset + track.cooldown
                changes.append(track.change("end"))
                return
        if self._update and end - track.updated >= self._update:
            track.updated = end
            changes.append(track.change("update"))

    @staticmethod
    def _count(track: _Track, score: float, mean_square: float, weighted: float) -> None:
        track.peak = max(track.peak, score)
        track.score_sum += score
        track.square_sum += mean_square
        track.weighted_sum += weighted
        track.rows += 1
