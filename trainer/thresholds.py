"""Thresholds per label for a stated rate of false events: from scores of sound without any label comes how high a label must score,
from scores of soundscapes which way to open and close its events hears most. No network is needed here, and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats
from detector.model import Threshold
from trainer.streams import Bank, Event, Soundscape, soundscape

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Stream = tuple[Floats, Sequence[Event]]
"""The scores of a soundscape, [rows, labels], and what there is to hear in it."""

DEFAULT = {"on": 0.5, "off": 0.25, "min_on_s": 0.15, "min_off_s": 0.6}
"""Where there is nothing to choose on."""
SOUNDSCAPES, SOUNDSCAPE_S, SEED = 60, 40.0, 5
"""What thresholds are chosen on."""
FALSE_EVENTS_PER_HOUR = 10.0
"""Over all labels: what a training chooses its thresholds for. For fewer it takes more quiet sound than a data set has: `tune`."""

HOLDS_S = (0.0, 0.15, 0.3, 0.5)
"""min_on_s to choose from. A subscriber waits for it at every event, so none is longer."""
PAUSES_S = (0.6, 1.2)
RELEASES = (0.5, 0.25)
"""off as a share of on."""
LEVELS = np.arange(-70, 93) / 10
"""Logits that `on` is chosen from; those of LOWEST and below tell how the rate falls."""
ON = np.ceil(1e5 / (1 + np.exp(-LEVELS))) / 1e5
LOWEST = 0.05
TAIL = 30
"""The tail of the rate of false events is fitted to so many of the highest. Fitted to halves of 45 min of backgrounds for a tenth
of an event to two, the other halves held about as many as expected; fitted to 8 they held up to four times as many."""
COLLAR_S = 0.5
"""A told event may lie so far beside the true one, and be told so long after its end."""
TIE = 0.02
"""F-scores that differ by less are the same: a label has a few dozen events."""


@dataclass(frozen=True)
class Setting:
    """One way to open and close events: a Threshold without its level; release: off as a share of on."""

    min_on_s: float
    min_off_s: float
    release: float

    def at(self, on: float) -> Threshold:
        return Threshold(on, round(min(on, on * self.release), 6), self.min_on_s, self.min_off_s)

    @staticmethod
    def of(threshold: Threshold) -> Setting:
        """That of a threshold, whose level is to change."""
        return Setting(threshold.min_on_s, threshold.min_off_s, threshold.off / threshold.on if threshold.on else 1.0)


SETTINGS = tuple(Setting(hold, pause, release) for hold in HOLDS_S for pause in PAUSES_S for release in RELEASES)
"""Of two that hear equally well the first one is taken."""


@dataclass(frozen=True)
class Heard:
    """recall: share of a label's true events that are told; f1: of true and told events, see `hears`."""

    recall: float
    f1: float


@dataclass(frozen=True)
class Expected:
    """What to expect of one label's threshold: false events an hour as counted in the quiet sound and by the fitted tail, which
    reaches further; heard: on the soundscapes it was chosen on, None where they hold no event of it."""

    counted: float
    extrapolated: float
    heard: Heard | None


@dataclass(frozen=True)
class Chosen:
    """Thresholds and what to expect of them; target: false events an hour over all labels; hours: of quiet sound."""

    thresholds: dict[str, Threshold]
    expected: dict[str, Expected]
    target: float
    hours: float

    @property
    def reach(self) -> float:
        """How many times longer than the quiet sound it takes, at the wanted rate, until a label tells one false event."""
        return len(self.thresholds) / (self.target * self.hours)

    @property
    def kept(self) -> dict[str, Threshold]:
        """Those that keep to their equal share of the target: of the other labels no level is high enough."""
        share = self.target / len(self.thresholds)
        return {label: one for label, one in self.thresholds.items() if self.expected[label].extrapolated <= share * (1 + 1e-9)}

    @property
    def said(self) -> str:
        each = self.expected.values()
        recalls = [one.heard.recall for one in each if one.heard]
        return (
            f"thresholds: for {self.target:.3g} false events an hour over all labels; {sum(one.extrapolated for one in each):.2g} "
            f"expected and {sum(one.counted for one in each):.2g} counted in {self.hours:.2f} h of quiet sound"
            + (f"; {np.mean(recalls):.0%} of the events in soundscapes heard (mean over labels)" if recalls else "")
            + "; the thresholds were chosen on this: it is no test"
        )


def validation_soundscapes(made_of: Bank) -> list[Soundscape]:
    """Always the same ones of these sounds."""
    return [soundscape(made_of, int(SOUNDSCAPE_S * made_of.rate), [SEED, number]) for number in range(SOUNDSCAPES)]


def choose(
    labels: Sequence[str],
    hop: int,
    rate: int,
    quiet: Sequence[Floats],
    streams: Sequence[Stream],
    target: float = FALSE_EVENTS_PER_HOUR,
    settings: Mapping[str, Sequence[Setting]] | None = None,
) -> Chosen:
    """Per label the setting that hears its events best, at the lowest level that keeps its equal share of the target.

    hop, rate: samples a row, samples a second. quiet: scores [rows, labels] of recordings in which nothing of the labels is heard,
    at least one row; target: false events an hour over all labels, above 0; settings: per label, instead of SETTINGS.

    The level of a setting is the lowest at which, and above which, the tracker tells no more false events in the quiet sound than
    its share allows. Where that is less than TAIL events it also is not below the level at which their exponential tail reaches the
    share: over a high level the excess of the peaks in logits is nearly exponential, so that its mean is all there is to fit
    (peaks over threshold: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4, shape 0).
    """
    hours = sum(map(len, quiet)) * hop / rate / 3600
    share = target / len(labels)
    most = max(_rows(setting.min_off_s, hop, rate) for each in (settings or {"": SETTINGS}).values() for setting in each)
    sounds = _joined([scores for scores, _ in streams], most)
    chosen: dict[str, tuple[float, Threshold, Expected]] = {}
    for column, label in enumerate(labels):
        true = _true(streams, column, hop, most)
        noise = _joined([scores[:, [column]] for scores in quiet], most)[:, 0]  # days of all labels at once are gigabytes
        found: list[tuple[float, Threshold, Expected]] = []
        for setting in settings[label] if settings else SETTINGS:
            false = _rate(_false_events(noise, setting, hop, rate))
            level = false.level(share * hours)
            threshold = setting.at(float(ON[level]))
            told = len(_tell(noise, threshold, hop, rate)[0])
            heard = _heard(sounds[:, column], true, threshold, hop, rate) if len(true) else None
            found.append((heard.f1 if heard else 0.0, threshold, Expected(told / hours, false.expected(level) / hours, heard)))
        best = max(f1 for f1, *_ in found)
        chosen[label] = next(one for one in found if one[0] >= best - TIE)
    thresholds = {label: threshold for label, (_, threshold, _) in chosen.items()}
    return Chosen(thresholds, {label: expected for label, (*_, expected) in chosen.items()}, target, hours)


def hears(
    labels: Sequence[str], hop: int, rate: int, streams: Sequence[Stream], thresholds: Mapping[str, Threshold]
) -> dict[str, Heard | None]:
    """How well these thresholds hear the events of soundscapes; None for a label without any.

    A true event is heard when an event told until COLLAR_S after its end overlaps it, widened by COLLAR_S. A told event is right
    when half of it lies in such true ones. Of one true event told in pieces, one piece is a hit, the others are too many.
    """
    most = max(_rows(threshold.min_off_s, hop, rate) for threshold in thresholds.values())
    sounds = _joined([scores for scores, _ in streams], most)
    found: dict[str, Heard | None] = {}
    for column, label in enumerate(labels):
        true = _true(streams, column, hop, most)
        found[label] = _heard(sounds[:, column], true, thresholds[label], hop, rate) if len(true) else None
    return found


def _rows(seconds: float, hop: int, rate: int) -> int:
    """As the tracker counts them."""
    return max(1, math.ceil(seconds * rate / hop - 1e-9))


def _joined(tables: Sequence[Floats], apart: int) -> Scores:
    """Tables of scores one below the other, each followed by so many rows of -1, in which every event ends."""
    if not tables:
        return np.zeros((0, 0))
    gap = np.full((apart, tables[0].shape[1]), -1.0)
    return np.concatenate([part for table in tables for part in (table.astype(np.float64), gap)])


def _true(streams: Sequence[Stream], label: int, hop: int, apart: int) -> Scores:
    """Begin and end of the label's events, [events, 2], in rows of the joined tables."""
    firsts = np.cumsum([0, *(len(scores) + apart for scores, _ in streams)])
    found = [
        (first + event.onset / hop, first + event.offset / hop)
        for first, (_, events) in zip(firsts.tolist(), streams, strict=False)
        for event in events
        if event.label == label
    ]
    return np.array(found, np.float64).reshape(-1, 2)


def _held(scores: Scores, rows: int) -> Scores:
    """What the scores have not been below for so many rows, this one the last; -1 before."""
    held, width = scores.copy(), 1
    while width < min(rows, len(scores)):
        back = min(width, rows - width)
        held[back:] = np.minimum(held[back:], held[:-back])
        width += back
    held[: rows - 1] = -1
    return held


def _events(at: Rows, scores: Scores, held: Scores, on: float, off: float, pause: int) -> tuple[Rows, Rows]:
    """The tracker's rule for a whole column: the rows in which its events open, and their last rows.

    at: the rows there are scores of, all that reach `off` among them.
    """
    opening = at[held >= on]
    alive = at[scores >= off] if len(opening) else at[:0]
    ends = np.flatnonzero(np.diff(alive) > pause)
    first, last = alive[np.append(0, ends + 1)[: len(alive)]], alive[np.append(ends, len(alive) - 1)[: len(alive)]]
    lasting, index = np.unique(np.searchsorted(first, opening, side="right") - 1, return_index=True)
    return opening[index], last[lasting]


def _tell(scores: Scores, threshold: Threshold, hop: int, rate: int) -> tuple[Rows, Rows]:
    held = _held(scores, _rows(threshold.min_on_s, hop, rate))
    return _events(np.arange(len(scores)), scores, held, threshold.on, threshold.off, _rows(threshold.min_off_s, hop, rate))


def _false_events(scores: Scores, setting: Setting, hop: int, rate: int) -> Rows:
    """How many events are told at each level of ON, or at a higher one if those are more: never more for a higher level."""
    held, pause = _held(scores, _rows(setting.min_on_s, hop, rate)), _rows(setting.min_off_s, hop, rate)
    at = np.flatnonzero(scores >= setting.at(float(ON[0])).off)
    scores, held = scores[at], held[at]
    highest = held.max(initial=-1)
    counts = np.zeros(len(ON), np.int64)
    for index in range(int(np.searchsorted(ON, highest, side="right"))):
        threshold = setting.at(float(ON[index]))
        counts[index] = len(_events(at, scores, held, threshold.on, threshold.off, pause)[0])
    return np.maximum.accumulate(counts[::-1])[::-1]


@dataclass(frozen=True)
class _Rate:
    """False events by level: as counted, and from LEVELS[start] on, which `peaks` of them reach, by an exponential tail."""

    counts: Rows
    start: int
    peaks: int
    mean_excess: float

    def expected(self, level: int) -> float:
        """Events to expect at LEVELS[level] in as much quiet sound."""
        if level < self.start or not self.peaks:
            return float(self.counts[level])
        return self.peaks * math.exp((LEVELS[self.start] - LEVELS[level]) / self.mean_excess)

    def level(self, allowed: float) -> int:
        """The position of the lowest level from LOWEST on with no more events than these, counted and expected; else the last."""
        lowest, last = int(np.searchsorted(ON, LOWEST)), len(ON) - 1
        return next((i for i in range(lowest, last) if self.counts[i] <= allowed and self.expected(i) <= allowed), last)


def _rate(counts: Rows) -> _Rate:
    """Fit the tail by maximum likelihood to the TAIL highest false events, or fewer where there are fewer."""
    start = int(np.argmax(counts <= TAIL)) if counts[-1] <= TAIL else len(counts) - 1
    peaks = int(counts[start])
    return _Rate(counts, start, peaks, float(counts[start:].sum() - peaks / 2) * (LEVELS[1] - LEVELS[0]) / max(1, peaks))


def _heard(scores: Scores, true: Scores, threshold: Threshold, hop: int, rate: int) -> Heard:
    """As `hears` says, of one label."""
    opened, last = _tell(scores, threshold, hop, rate)
    onset, offset = opened - _rows(threshold.min_on_s, hop, rate) + 1, last + 1
    collar = COLLAR_S * rate / hop
    begin, end = true[:, 0] - collar, true[:, 1] + collar
    overlap = np.maximum(0, np.minimum(offset[:, None], end) - np.maximum(onset[:, None], begin))
    heard = int(((overlap > 0) & (opened[:, None] + 1 <= end)).any(0).sum())
    right = int((overlap.sum(1) >= (offset - onset) / 2).sum())
    return Heard(heard / len(true), 2 * min(heard, right) / (len(true) + len(opened)))
