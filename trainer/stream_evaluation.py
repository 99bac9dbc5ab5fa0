"""What a model file is worth on streams: events on recordings and soundscapes, false events on quiet sound, bad conditions.

Everything follows from the ONNX file, the sounds and a seed; torch is not needed. Each sound is heard as one fresh stream.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from detector.audio.source import Floats
from detector.model import Description, Model
from trainer.classify import pool
from trainer.data import DataSet, background_files, must_have
from trainer.hearing import Told, scores_of, told
from trainer.levels import Known, Level, levels
from trainer.robustness import CLEAN, CONDITIONS, Condition
from trainer.stream_metrics import (
    Counts,
    Detection,
    Span,
    Truth,
    calibration_error,
    collar_counts,
    detection,
    first_overlapping,
    intersection_counts,
    poisson_bound,
    psds,
    segment_counts,
)
from trainer.stream_sounds import SOUNDSCAPE_S, Recording, load_recordings, soundscapes, synthetic_sounds
from trainer.streams import BLOCK, Soundscape

SYNTHETIC_S = 600.0
EXAMPLES = 10


@dataclass(frozen=True)
class Heard:
    """What the model made of a sound: its scores [rows, labels] and the events told of it."""

    duration_s: float
    scores: Floats
    told: list[Told]


@dataclass(frozen=True)
class Recorded:
    """Events of real recordings; with_event: recordings in which at least one known event was found."""

    recordings: int
    with_event: int
    overall: Detection
    per_label: dict[str, Detection]


@dataclass(frozen=True)
class SceneLabel:
    """One label on the soundscapes: F1 by segments of 1 s, by onsets within 200 ms, by intersection; what was found, and when."""

    segment_f1: float
    collar_f1: float
    intersection_f1: float
    detection: Detection


@dataclass(frozen=True)
class Scenes:
    """Events of soundscapes, as the daemon tells them. macro: the mean of the F1s over labels that occur; micro: of all counts.

    psds: see trainer.stream_metrics.psds. ece: of the scores of all rows and labels, a label sounding in a row when it does in the
    row's middle.
    """

    soundscapes: int
    hours: float
    macro: dict[str, float]
    micro: dict[str, float]
    overall: Detection
    per_label: dict[str, SceneLabel]
    psds: dict[str, float] | None
    ece: float


@dataclass(frozen=True)
class Quiet:
    """False events on sound without any label; at_most_per_hour: the exact one-sided 95 % Poisson bound."""

    name: str
    sounds: int
    hours: float
    events: int
    per_hour: float
    at_most_per_hour: float
    per_label: dict[str, int]


@dataclass(frozen=True)
class Robust:
    """One condition; None where there is nothing to measure it on."""

    condition: str
    accuracy: float | None
    recall: float | None
    false_per_hour: float | None


@dataclass(frozen=True)
class Example:
    """One soundscape and what the model heard and told of it: number among the soundscapes, from 1."""

    number: int
    truth: Sequence[Truth]
    heard: Heard


@dataclass(frozen=True)
class Report:
    """All figures of a model; folds: those the clips and recordings are of. None, or no row, where an input was not given.

    levels: where there are quiet folders and events to find; example: the first with most labels of the first EXAMPLES soundscapes.
    """

    folds: tuple[int, ...]
    seed: int
    recorded: Recorded | None
    scenes: Scenes | None
    quiet: tuple[Quiet, ...]
    robust: tuple[Robust, ...]
    levels: tuple[Level, ...]
    example: Example | None = field(default=None, compare=False, repr=False)


def evaluate_streams(
    model: Model,
    *,
    data: DataSet | None = None,
    recordings: Path | None = None,
    quiet: Sequence[Path] = (),
    folds: Sequence[int] = (),
    robust: bool = False,
    seed: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Every figure whose input is given, on clips and recordings of these folds, else of all.

    quiet: folders of sound without any label, of which the part `test` is heard, and on which the soundscapes are laid.
    say: told what comes next. Raises InputError for what cannot be read.
    """
    d = model.description
    files = {folder: background_files([folder], "test") for folder in quiet}
    rows = load_recordings(recordings, d.labels, folds) if recordings else []
    if data is not None:
        must_have(data, folds)
        data = replace(data, clips=tuple(clip for clip in data.clips if not folds or clip.fold in folds))

    def hear(paths: Sequence[Path], condition: Condition) -> list[Heard]:
        return listen(model, (partial(condition.read, path, d.sample_rate, [seed, i]) for i, path in enumerate(paths)))

    say(f"hearing {len(rows)} recordings and {sum(map(len, files.values()))} quiet ones")
    heard_rows = hear([row.path for row in rows], CLEAN)
    heard_quiet = {folder: hear(paths, CLEAN) for folder, paths in files.items()}
    all_quiet = [one for heard in heard_quiet.values() for one in heard]
    say("hearing synthetic sound")
    heard_synthetic = {name: listen(model, sounds) for name, sounds in synthetic_sounds(d.sample_rate, SYNTHETIC_S, seed)}
    made: list[Soundscape] = []
    if data is not None:
        say("hearing soundscapes")
        made = soundscapes(data, quiet, d.sample_rate, seed)
    truth = [[Truth(d.labels[e.label], e.onset / d.sample_rate, e.offset / d.sample_rate) for e in scene.events] for scene in made]
    heard_scenes = listen(model, (partial(np.asarray, scene.audio) for scene in made))
    others: tuple[Level, ...] = ()
    if quiet and (rows or made):
        say("moving the thresholds")
        others = levels(
            d,
            [one.scores for one in all_quiet],
            sum(one.duration_s for one in all_quiet) / 3600,
            Known([row.events for row in rows], [one.scores for one in heard_rows]) if rows else None,
            Known(truth, [one.scores for one in heard_scenes]) if made else None,
        )
    table = []
    for condition in CONDITIONS if robust else ():
        say(f"hearing everything as {condition.name}")
        again = condition is not CLEAN
        table.append(
            Robust(
                condition.name,
                None if data is None else _accuracy(hear(data.paths, condition), data, d.clip_pooling),
                _recall(rows, hear([row.path for row in rows], condition) if again else heard_rows),
                _per_hour(hear([path for paths in files.values() for path in paths], condition) if again else all_quiet),
            )
        )
    return Report(
        folds=tuple(sorted({*(data.folds if data else ()), *(row.fold for row in rows if row.fold is not None)})),
        seed=seed,
        recorded=_recorded(rows, heard_rows, d.labels) if rows else None,
        scenes=_scenes(d, made, truth, heard_scenes) if made else None,
        quiet=(
            *(_quiet(folder.name, heard, d.labels) for folder, heard in heard_quiet.items()),
            *([_quiet("all folders", all_quiet, d.labels)] if len(quiet) > 1 else ()),
            *(_quiet(name, heard, d.labels) for name, heard in heard_synthetic.items()),
            _quiet("all synthetic sound", [one for heard in heard_synthetic.values() for one in heard], d.labels),
        ),
        robust=tuple(table),
        levels=others,
        example=_example(truth, heard_scenes) if made else None,
    )


def listen(model: Model, sounds: Iterable[Callable[[], Floats]]) -> list[Heard]:
    """Hear each sound as a fresh stream, as many at once as there are cores; a sound is made when its turn comes."""

    def one(make: Callable[[], Floats]) -> Heard:
        audio = make()
        scores = scores_of(model, audio)
        return Heard(len(audio) / model.description.sample_rate, scores, told(scores, model.description))

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        return list(workers.map(one, sounds))


def _recorded(rows: Sequence[Recording], heard: Sequence[Heard], labels: Sequence[str]) -> Recorded:
    truth, said = [row.events for row in rows], [one.told for one in heard]
    hit = [any(first_overlapping(event, one) for event in events) for events, one in zip(truth, said, strict=True)]
    return Recorded(len(rows), sum(hit), detection(truth, said), _per_label(truth, said, labels))


def _per_label(truth: Sequence[Sequence[Truth]], said: Sequence[Sequence[Told]], labels: Sequence[str]) -> dict[str, Detection]:
    each = {label: detection(truth, said, label) for label in labels}
    return {label: one for label, one in each.items() if one.events}


def _scenes(d: Description, made: Sequence[Soundscape], truth: Sequence[Sequence[Truth]], heard: Sequence[Heard]) -> Scenes:
    labels = d.labels
    counters: dict[str, Callable[[Sequence[Span], Sequence[Span]], Counts]] = {
        "segment_f1": lambda known, said: segment_counts(known, said, SOUNDSCAPE_S),
        "collar_f1": collar_counts,
        "intersection_f1": intersection_counts,
    }
    counts = {name: dict.fromkeys(labels, Counts(0, 0, 0)) for name in counters}
    for events, one in zip(truth, heard, strict=True):
        for label in labels:
            known = [(e.onset_s, e.offset_s) for e in events if e.label == label]
            said = [(t.onset_s, min(t.offset_s, SOUNDSCAPE_S)) for t in one.told if t.label == label]
            for name, count in counters.items():
                counts[name][label] += count(known, said)
    found = _per_label(truth, [one.told for one in heard], labels)
    middles = [(np.arange(len(one.scores)) * d.hop + d.hop // 2) // BLOCK for one in heard]
    sounds = [scene.active[np.minimum(middle, len(scene.active) - 1)] for scene, middle in zip(made, middles, strict=True)]
    return Scenes(
        soundscapes=len(made),
        hours=len(made) * SOUNDSCAPE_S / 3600,
        macro={name: float(np.mean([of[label].f1 for label in found])) if found else 0.0 for name, of in counts.items()},
        micro={name: sum(of.values(), Counts(0, 0, 0)).f1 for name, of in counts.items()},
        overall=detection(truth, [one.told for one in heard]),
        per_label={
            label: SceneLabel(**{name: of[label].f1 for name, of in counts.items()}, detection=one) for label, one in found.items()
        },
        psds=psds([one.scores for one in heard], truth, [SOUNDSCAPE_S] * len(made), labels, d.hop / d.sample_rate),
        ece=calibration_error(np.concatenate([one.scores for one in heard]), np.concatenate(sounds)),
    )


def _example(truth: Sequence[Sequence[Truth]], heard: Sequence[Heard]) -> Example:
    number = max(range(len(truth[:EXAMPLES])), key=lambda index: len({event.label for event in truth[index]}))
    return Example(number + 1, truth[number], heard[number])


def _quiet(name: str, heard: Sequence[Heard], labels: Sequence[str]) -> Quiet:
    hours = sum(one.duration_s for one in heard) / 3600
    alarms = Counter(event.label for one in heard for event in one.told)
    count = alarms.total()
    per_label = {label: alarms[label] for label in labels if alarms[label]}
    return Quiet(name, len(heard), hours, count, count / hours, poisson_bound(count) / hours, per_label)


def _accuracy(heard: Sequence[Heard], data: DataSet, pooling: str) -> float:
    right = [pool(one.scores, pooling).argmax() == clip.target for one, clip in zip(heard, data.clips, strict=True)]
    return float(np.mean(right))


def _recall(rows: Sequence[Recording], heard: Sequence[Heard]) -> float | None:
    return detection([row.events for row in rows], [one.told for one in heard]).recall if rows else None


def _per_hour(heard: Sequence[Heard]) -> float | None:
    return sum(len(one.told) for one in heard) / sum(one.duration_s for one in heard) * 3600 if heard else None
