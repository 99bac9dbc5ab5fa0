"""What events told of streams are worth: found or missed, how late, how many false ones an hour. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats
from trainer.hearing import Told

SEGMENT_S = 1.0
COLLAR_S = 0.2
TOLERANCE = 0.5
"""Detection and ground truth tolerance (DTC, GTC) of the intersection-based F1."""
EARLY_S = 0.5
"""What was told of longer before the annotated onset was not told of this event: it has no latency."""
ALMOST = 1e-6
"""Seconds by which times may differ that are the same: as sed_scores_eval has it."""
BINS = 15
PSDS: dict[str, dict[str, Any]] = {
    "psds_1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1.0, "alpha_ct": 0.0, "cttc_threshold": None},
    "psds_2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "alpha_st": 1.0, "alpha_ct": 0.5, "cttc_threshold": 0.3},
}
"""The two scenarios of DCASE task 4: 1 asks for exact times, 2 for the right label."""

Span = tuple[float, float]
"""Onset and offset of an event in seconds."""


@dataclass(frozen=True)
class Truth:
    """An event that is known to be in a recording."""

    label: str
    onset_s: float
    offset_s: float


@dataclass(frozen=True)
class Detection:
    """How many known events were found, and when.

    found: a told event of the label overlaps it; timed: of those, the first overlapping one began no more than EARLY_S before it.
    Only timed events have an onset error (told onset - known onset) and a latency (from the known onset to the `start` message, at
    least 0); None where there are none.
    """

    events: int
    found: int
    timed: int
    onset_error_s: float | None
    onset_distance_s: float | None
    latency_s: float | None
    latency_p95_s: float | None

    @property
    def recall(self) -> float:
        return self.found / self.events if self.events else 0.0


def detection(truth: Sequence[Sequence[Truth]], told: Sequence[Sequence[Told]], label: str | None = None) -> Detection:
    """Recording by recording what is known against what was told, of one label or of all. Errors and latency: medians, 95th
    percentile; onset_distance_s: the median absolute error."""
    events = found = 0
    errors, latencies = [], []
    for known, heard in zip(truth, told, strict=True):
        for event in known:
            if label is None or event.label == label:
                events += 1
                if (first := first_overlapping(event, heard)) is not None:
                    found += 1
                    if first.onset_s >= event.onset_s - EARLY_S:
                        errors.append(first.onset_s - event.onset_s)
                        latencies.append(max(0.0, first.told_s - event.onset_s))
    if not errors:
        return Detection(events, found, 0, None, None, None, None)
    median, distance, late = np.median(errors), np.median(np.abs(errors)), np.percentile(latencies, [50, 95])
    return Detection(events, found, len(errors), float(median), float(distance), float(late[0]), float(late[1]))


def first_overlapping(event: Truth, heard: Sequence[Told]) -> Told | None:
    """The earliest told event of the same label that overlaps this one."""
    hits = [t for t in heard if t.label == event.label and t.onset_s < event.offset_s and t.offset_s > event.onset_s]
    return min(hits, key=lambda t: t.onset_s, default=None)


@dataclass(frozen=True)
class Counts:
    """Known events (or segments) that were found, told ones that are false, known ones in all."""

    hits: int
    false: int
    known: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.hits + other.hits, self.false + other.false, self.known + other.known)

    @property
    def f1(self) -> float:
        """2 P R / (P + R) with P = hits / (hits + false), R = hits / known; 0 without a hit."""
        precision, recall = self.hits / max(1, self.hits + self.false), self.hits / max(1, self.known)
        return 2 * precision * recall / (precision + recall) if self.hits else 0.0


def segment_counts(known: Sequence[Span], told: Sequence[Span], duration_s: float) -> Counts:
    """Of one label in one recording: segments of SEGMENT_S that an event reaches into (Mesaros et al. 2016)."""
    edges = np.arange(math.ceil(duration_s / SEGMENT_S) + 1) * SEGMENT_S

    def reached(spans: Sequence[Span]) -> NDArray[np.bool_]:
        hit = np.zeros(len(edges) - 1, bool)
        for onset, offset in spans:
            hit |= (edges[:-1] < offset - ALMOST) & (edges[1:] > onset + ALMOST)
        return hit

    a, b = reached(known), reached(told)
    return Counts(int((a & b).sum()), int((b & ~a).sum()), int(a.sum()))


def collar_counts(known: Sequence[Span], told: Sequence[Span]) -> Counts:
    """Of one label in one recording: most pairs of a known and a told event whose onsets are within COLLAR_S; offsets do not count.

    All collars are equally wide, so pairing the onsets in order of time pairs as many as can be.
    """
    onsets, heard = sorted(onset for onset, _ in known), sorted(onset for onset, _ in told)
    hits = i = j = 0
    while i < len(onsets) and j < len(heard):
        distance = heard[j] - onsets[i]
        hit = abs(distance) <= COLLAR_S + ALMOST / 2
        hits += hit
        i += hit or distance > 0
        j += hit or distance < 0
    return Counts(hits, len(heard) - hits, len(onsets))


def intersection_counts(known: Sequence[Span], told: Sequence[Span]) -> Counts:
    """Of one label in one recording (Bilen et al. 2020): a told event is false unless known ones cover TOLERANCE of it; a known one
    is found when told ones that are not false cover TOLERANCE of it."""
    if not known or not told:
        return Counts(0, len(told), len(known))
    a, b = np.array(known), np.array(told)
    common = np.maximum(0, np.minimum(b[:, None, 1], a[None, :, 1]) - np.maximum(b[:, None, 0], a[None, :, 0]))
    right = common.sum(1) >= TOLERANCE * (b[:, 1] - b[:, 0]) - ALMOST / 2
    found = (common * right[:, None]).sum(0) >= TOLERANCE * (a[:, 1] - a[:, 0]) - ALMOST / 2
    return Counts(int(found.sum()), int((~right).sum()), len(a))


def psds(
    scores: Sequence[Floats], truth: Sequence[Sequence[Truth]], durations_s: Sequence[float], labels: Sequence[str], row_s: float
) -> dict[str, float] | None:
    """PSDS over all thresholds in both scenarios (Ebbers et al. 2022), of raw scores [rows, labels]; None where sed_scores_eval is
    not installed. Up to 100 false events an hour; labels without a known event do not count."""
    if find_spec("sed_scores_eval") is None:
        return None
    from sed_scores_eval import intersection_based
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    present = [label for label in labels if any(event.label == label for events in truth for event in events)]
    if not present:
        return dict.fromkeys(PSDS, 0.0)
    columns = [labels.index(label) for label in present]
    tables, known, lengths = {}, {}, {}
    for number, (table, events, duration_s) in enumerate(zip(scores, truth, durations_s, strict=True)):
        name = f"{number:06d}"
        rows = min(len(table), math.ceil(duration_s / row_s))
        times = np.minimum(np.arange(rows + 1) * row_s, duration_s)
        tables[name] = create_score_dataframe(table[:rows, columns].astype(np.float64), times, present)
        known[name] = [(event.onset_s, event.offset_s, event.label) for event in events]
        lengths[name] = duration_s
    return {name: float(intersection_based.psds(tables, known, lengths, **how)[0]) for name, how in PSDS.items()}


def calibration_error(scores: Floats | NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error: |share of right ones - mean score| per bin of scores, weighted by their number.

    scores: in 0..1, each the probability that its label sounds or its answer is right; right: whether it does, of the same shape,
    pooled. 15 bins of equal width, each with its upper edge and without its lower one (Guo et al., On Calibration of Modern Neural
    Networks, 2017).
    """
    flat = scores.ravel().astype(np.float64)
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], flat, side="left")
    return float(np.abs(np.bincount(bins, right.ravel() - flat)).sum() / len(flat))


def poisson_bound(count: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a Poisson mean: that with which so few events have probability 1 - confidence.

    Half the chi-square quantile of 2 (count + 1) degrees of freedom (Garwood 1936), by bisection; 2.996 for no event.
    """
    low, high = float(count), count + 10 * math.sqrt(count + 1) + 10
    for _ in range(60):
        mean = (low + high) / 2
        below = math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)) if mean else 1.0
        low, high = (mean, high) if below > 1 - confidence else (low, mean)
    return high
