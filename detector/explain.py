"""Why something was told, or was not: what the score logs hold of the seconds around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats
from detector.errors import InputError
from detector.event import timestamp
from detector.model import Threshold
from detector.score_file import About, Part, Told, read

AROUND_S = 5.0
"""Shown before and after: what a row of scores still remembers of the sound before."""
LONGEST_S = 120.0
"""Of an event that lasts longer, the first two minutes are shown."""
OTHERS = 3
"""Labels shown beside the one that is asked for: those that came closest to being told."""


@dataclass(frozen=True)
class Event:
    """One that was told. Times are UTC in seconds since 1970; told_s: of its `start`; ends_s: None where its end is not known."""

    id: str
    label: str
    begins_s: float
    told_s: float
    ends_s: float | None
    score: float


@dataclass(frozen=True)
class Window:
    """Rows of one source, of its log alone: where there is none, nothing was heard.

    begins_s: [rows], when each begins, UTC in seconds since 1970; scores: [rows, labels]; dbfs: [rows]; thresholds: in force,
    of each row; events: told in it.
    """

    about: About
    begins_s: NDArray[np.float64]
    scores: Floats
    dbfs: Floats
    thresholds: list[Mapping[str, Threshold]]
    events: list[Event]

    def column(self, label: str) -> Floats:
        scores: Floats = self.scores[:, self.about.labels.index(label)]
        return scores

    def level(self, label: str) -> NDArray[np.float64]:
        """The score that opens an event of this label, at each row."""
        return np.array([threshold[label].on for threshold in self.thresholds])

    def closest(self, besides: Sequence[str] = ()) -> list[str]:
        """Labels by how near they came to their thresholds, the nearest first."""

        def short_of(label: str) -> float:
            return float((logit(self.level(label)) - logit(self.column(label))).min())

        return sorted((label for label in self.about.labels if label not in besides), key=short_of)


def logit(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Within what a score log resolves."""
    wide = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    odds: NDArray[np.float64] = np.log(wide / (1 - wide))
    return odds


def _written_s(file: Path) -> float:
    """When last; of a file that is not there, its reader says so."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def find(files: Sequence[Path], event_id: str) -> tuple[Event, str]:
    """The event of this id, and its source. Raises InputError when it is in none of these files."""
    said = re.fullmatch(r"([0-9a-f]+)-([\w.-]+)-(\d+)", event_id)
    if not said:
        raise InputError(event_id, "is no event's id", "it stands in every event: 5d0c2e8f91a4-dog_bark-141312")
    session, label, onset = said[1], said[2], int(said[3])
    end: Told | None = None
    for file in sorted(files, key=_written_s, reverse=True):
        about, parts = read(file)
        for part in reversed(parts):
            if part.session != session:
                continue
            for told in reversed(part.told):
                if (told.label, told.onset) != (label, onset):
                    continue
                end = end or told
                if told.phase == "start":
                    return _event(about, session, told, end), about.source
    raise InputError(
        event_id, "is in none of the score logs", "it is there some seconds after its end, until max_mb or max_days are over"
    )


def _event(about: About, session: str, start: Told, last: Told) -> Event:
    """As its messages said it."""
    begins_s = datetime.fromisoformat(start.utc).timestamp()
    told_s = begins_s + (start.offset - start.onset) / about.sample_rate
    ends_s = datetime.fromisoformat(last.utc).timestamp() if last.phase == "end" else None
    return Event(f"{session}-{start.label}-{start.onset}", start.label, begins_s, told_s, ends_s, last.score)


def window(files: Sequence[Path], source: str, begin_s: float, end_s: float, session: str = "") -> Window:
    """What this source heard, UTC in seconds since 1970, in this session or in any. Raises InputError when that is nothing."""
    about: About | None = None
    begins: list[NDArray[np.float64]] = []
    tables: list[Floats] = []
    levels: list[Floats] = []
    thresholds: list[Mapping[str, Threshold]] = []
    starts: list[tuple[str, Told]] = []
    last: dict[tuple[str, str, int], Told] = {}
    for about, part in _parts(files, source, begin_s, end_s):
        if session not in ("", part.session):
            continue
        begins_s = part.ends_s + (np.arange(part.rows, dtype=np.float64) - 1) * about.row_s
        among = (begins_s + about.row_s > begin_s) & (begins_s < end_s)
        scores, dbfs = part.numbers(len(about.labels))
        begins.append(begins_s[among])
        tables.append(scores[among])
        levels.append(dbfs[among])
        thresholds += [part.thresholds] * int(among.sum())
        starts += [(part.session, told) for told in part.told if told.phase == "start"]
        last |= {(part.session, told.label, told.onset): told for told in part.told}
    if about is None or not thresholds:
        raise InputError(
            f"{source}, {utc(begin_s)} to {utc(end_s)}",
            "nothing was heard then, or its log is gone",
            "`health` and the program's log say when a microphone was away",
        )
    events = [_event(about, of, told, last[of, told.label, told.onset]) for of, told in starts]
    shown = [event for event in events if event.begins_s < end_s and (event.ends_s or end_s) > begin_s]
    when = np.concatenate(begins)
    order = np.argsort(when, kind="stable")  # a clock that was set back in between
    scores, dbfs = np.concatenate(tables)[order], np.concatenate(levels)[order]
    return Window(about, when[order], scores, dbfs, [thresholds[i] for i in order.tolist()], shown)


def _parts(files: Sequence[Path], source: str, begin_s: float, end_s: float) -> Iterator[tuple[About, Part]]:
    """Those that overlap; of files of several models, those of the first one found."""
    sha256 = ""
    for file in files:
        about, parts = read(file)
        if about.source != source or about.sha256 != (sha256 or about.sha256):
            continue
        for part in parts:
            if part.ends_s - about.row_s < end_s and part.ends_s + (part.rows - 1) * about.row_s > begin_s:
                sha256 = about.sha256
                yield about, part


def sources(files: Sequence[Path]) -> list[str]:
    """Whose logs these are."""
    return sorted({read(file)[0].source for file in files})


def why(seen: Window, label: str, at_s: float) -> str:
    """Why this label was told at this time, or was not, by what came high enough nearest to it: one sentence."""
    threshold, scores = seen.thresholds[-1][label], seen.column(label)
    levels, row_s = seen.level(label), seen.about.row_s
    told = [event for event in seen.events if event.label == label]
    outside = np.ones(len(scores), bool)
    for event in told:
        outside &= (seen.begins_s < event.begins_s - row_s / 2) | (seen.begins_s > (event.ends_s or np.inf) - row_s / 2)
    untold_s = np.abs(seen.begins_s[outside & (scores >= levels)] - at_s)
    if told and min(_away_s(event, at_s) for event in told) <= untold_s.min(initial=np.inf):
        return f"told: {', '.join(event.id for event in told)}"
    scores = np.where(outside, scores, 0)
    peak = int(np.argmax(logit(scores) - logit(levels)))
    peak_s = float(seen.begins_s[peak])
    at = f"{scores[peak]:.5g} at {utc(peak_s)}"
    for event in told:
        after_s = peak_s - (event.ends_s or np.inf)
        if -row_s / 2 < after_s < threshold.cooldown_s:
            held = f"{max(0.0, after_s):.2f} s after the end of {event.id}, cooldown_s is {threshold.cooldown_s:g}"
            return f"not told: it came to {at}, {held}"
    if scores[peak] < levels[peak]:
        if levels[peak] > 1:
            return f"not told: a profile had it muted; it came to {at}"
        return f"not told: it came to {at}, {levels[peak]:.5g} opens an event"
    longest = run = 0
    for reached in (scores >= levels).tolist():
        run = run + 1 if reached else 0
        longest = max(longest, run)
    if longest * row_s < threshold.min_on_s:
        held = f"for {longest * row_s:.2f} s at most, min_on_s is {threshold.min_on_s:g}"
        return f"not told: it came to {at}, over {levels[peak]:.5g} {held}"
    before = f", or within {threshold.cooldown_s:g} s of the one before (cooldown_s)" if threshold.cooldown_s else ""
    return f"no event began: it came to {at}, in an event that had begun before{before}"


def _away_s(event: Event, at_s: float) -> float:
    """How far from a time it is, 0 while it lasts."""
    return max(event.begins_s - at_s, at_s - (event.ends_s or np.inf), 0.0)


def utc(at_s: float) -> str:
    """As events say it."""
    return timestamp(datetime.fromtimestamp(at_s, UTC))


def local(at_s: float) -> str:
    """By this computer's zone."""
    return f"{datetime.fromtimestamp(at_s).astimezone():%H:%M:%S %Z}"
