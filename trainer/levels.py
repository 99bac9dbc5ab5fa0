"""The same model at other levels: what is found, and how many false events are told, when all thresholds move together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from detector.audio.source import Floats
from detector.model import Description, Threshold
from trainer.hearing import Told, told
from trainer.stream_metrics import Counts, Truth, detection, intersection_counts, poisson_bound

SHIFTS = tuple(sorted({*(step / 10 for step in range(-20, 21)), *(step / 2 for step in range(-8, 9))}))
"""Of the thresholds' logits: finely near 0, for the scores of a model that is seldom sure lie close together."""


@dataclass(frozen=True)
class Level:
    """The model with the logit of every `on` and `off` moved by `shift`; times stay. 0 is the model as it is.

    events: false ones, on all quiet folders together; at_most_per_hour: the exact one-sided 95 % Poisson bound; recall of events on
    recordings and soundscapes, and the macro intersection F1 on soundscapes; None where there are none.
    """

    shift: float
    events: int
    per_hour: float
    at_most_per_hour: float
    recorded_recall: float | None
    scenes_recall: float | None
    scenes_f1: float | None


@dataclass(frozen=True)
class Known:
    """Sounds with the events that are known to be in them: truth and scores [rows, labels], sound by sound."""

    truth: Sequence[Sequence[Truth]]
    scores: Sequence[Floats]


def levels(
    description: Description, quiet: Sequence[Floats], hours: float, recorded: Known | None = None, scenes: Known | None = None
) -> tuple[Level, ...]:
    """The model at each of SHIFTS, lowest first; quiet: scores of so many hours of sound without any label."""
    found = []
    for shift in SHIFTS:
        hear = partial(_hear, description, shifted(description.thresholds, shift))
        events = sum(map(len, hear(quiet)))
        of_recorded, of_scenes = (hear(known.scores) if known else None for known in (recorded, scenes))
        found.append(
            Level(
                shift,
                events,
                events / hours,
                poisson_bound(events) / hours,
                detection(recorded.truth, of_recorded).recall if recorded and of_recorded else None,
                detection(scenes.truth, of_scenes).recall if scenes and of_scenes else None,
                _macro_f1(scenes.truth, of_scenes, description.labels) if scenes and of_scenes else None,
            )
        )
    return tuple(found)


def shifted(thresholds: Mapping[str, Threshold], by: float) -> dict[str, Threshold]:
    """The same with the logit of `on` and `off` moved by so much; 0 and 1 stay what they are."""

    def moved(level: float) -> float:
        return level if by == 0 or level in (0, 1) else 1 / (1 + (1 / level - 1) * math.exp(-by))

    return {label: replace(one, on=moved(one.on), off=moved(one.off)) for label, one in thresholds.items()}


def lowest_within(levels: Sequence[Level], per_hour: float) -> Level | None:
    """The lowest level that tells no more false events an hour than these, nor does any above it; None where all tell more.

    Far below, events grow together, so that fewer of them would be told again: that is not better.
    """
    lowest = None
    for level in reversed(levels):
        if level.per_hour > per_hour:
            break
        lowest = level
    return lowest


def _hear(description: Description, thresholds: Mapping[str, Threshold], scores: Sequence[Floats]) -> list[list[Told]]:
    return [told(each, description, thresholds) for each in scores]


def _macro_f1(truth: Sequence[Sequence[Truth]], heard: Sequence[Sequence[Told]], labels: Sequence[str]) -> float:
    """As trainer.stream_evaluation.Scenes has it."""
    known, said = (
        [{label: [(e.onset_s, e.offset_s) for e in events if e.label == label] for label in labels} for events in each]
        for each in (truth, heard)
    )
    present = [label for label in labels if any(one[label] for one in known)]
    sums = [sum((intersection_counts(a[x], b[x]) for a, b in zip(known, said, strict=True)), Counts(0, 0, 0)) for x in present]
    return float(np.mean([one.f1 for one in sums])) if sums else 0.0
