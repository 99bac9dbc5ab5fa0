"""What a microphone heard, for choosing thresholds: scores out of score logs, and of recordings by the model. Needs no torch."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

from detector.audio.source import Floats
from detector.errors import InputError
from detector.model import Model, Threshold, shipped
from detector.score_file import STEPS, About, Part, logs, read, stretches
from detector.tracker import Tracker
from trainer.hearing import QUICK
from trainer.tuning import quiet_files, scores_of_file

LAST_S = 86_400.0
"""The thresholds in force are those of most of the last day: at night another profile may be."""


@dataclass(frozen=True)
class Source:
    """Where scores come from: the model by its sha256, its labels, samples a row and a second; the thresholds in force."""

    sha256: str
    labels: tuple[str, ...]
    hop: int
    rate: int
    thresholds: Mapping[str, Threshold]
    rounded: bool = False
    """Whether the scores are out of a score log, which keeps them to half a step."""

    def told(self, tables: Iterable[Floats], thresholds: Mapping[str, Threshold]) -> Counter[str]:
        """How many events of each label the daemon's own tracker tells in these scores, each table [rows, labels] a session."""
        told: Counter[str] = Counter()
        for scores in tables:
            tracker = Tracker(self.labels, thresholds, self.hop, self.rate)
            for first in range(0, len(scores), QUICK):
                part = scores[first : first + QUICK]
                changes = tracker.update(first * self.hop, part, np.zeros(len(part)))
                told.update(change.label for change in changes if change.phase == "start")
        return told

    def proposed(self, chosen: Mapping[str, Threshold]) -> dict[str, Threshold]:
        """All thresholds with these in place of the old, so that the daemon tells no more than was counted here."""
        return keep_cooldown(
            {label: replace(one, on=_above(one.on)) if self.rounded else one for label, one in chosen.items()}, self.thresholds
        )


def _above(on: float) -> float:
    """The score that whatever is kept as less than `on` was less than."""
    odds = on / (1 - on) * math.exp(0.5 / STEPS) if on < 1 else math.inf
    return min(1.0, math.ceil(1e5 / (1 + 1 / odds)) / 1e5)


def too_many(a_day: Mapping[str, float], target: float) -> tuple[list[str], float]:
    """Labels that must be told more seldom for all together to keep to the target, and what of it is left for these.

    Who tells no more than an equal share of what is left stays as it is; the others share the rest.
    """
    loud, left = list(a_day), target
    while stay := [label for label in loud if a_day[label] <= left / len(loud)]:
        left -= sum(a_day[label] for label in stay)
        loud = [label for label in loud if label not in stay]
        if not loud:
            break
    return loud, left


def keep_cooldown(new: Mapping[str, Threshold], old: Mapping[str, Threshold]) -> dict[str, Threshold]:
    """New thresholds, each with the cool-down of the old one; labels without a new one keep the old."""
    return {**old, **{label: replace(one, cooldown_s=old[label].cooldown_s) for label, one in new.items()}}


def columns(source: Source, tables: Sequence[Floats], labels: Sequence[str]) -> list[Floats]:
    """Of tables [rows, labels] the columns of these labels, in this order."""
    if tuple(labels) == source.labels:
        return list(tables)
    wanted = [source.labels.index(label) for label in labels]
    return [scores[:, wanted] for scores in tables]


@dataclass(frozen=True)
class Logged:
    """What score logs hold of one model. tables: scores without a gap in each; quiet: those of given times; spans: when, UTC, by
    source; others: files of another model."""

    source: Source
    tables: list[Floats]
    quiet: list[Floats]
    spans: dict[str, tuple[float, float]]
    others: list[Path]


def logged(files: Sequence[Path], sha256: str | None, quiet: Sequence[tuple[float, float]] = ()) -> Logged:
    """sha256: of the model that counts, the one heard with last when None; quiet: from when to when, UTC in seconds since 1970.

    Raises InputError where no log is of that model, or one cannot be read.
    """
    heard: dict[str, list[tuple[About, Part]]] = {}
    others: dict[str, list[Path]] = {}
    newest: tuple[float, About] | None = None
    for file in files:
        about, parts = read(file)
        heard.setdefault(about.sha256, []).extend((about, part) for part in parts)
        others.setdefault(about.sha256, []).append(file)
        if parts and about.sha256 in (sha256 or about.sha256) and (newest is None or parts[-1].ends_s > newest[0]):
            newest = (parts[-1].ends_s, about)
    if newest is None:
        fix = "give the model they were heard with, by --model" if sha256 else "let `urbandetect run` hear with [log_scores] first"
        raise InputError(", ".join(map(str, files[:3])), "holds no scores of this model" if sha256 else "holds no scores", fix)
    last_s, about = newest
    in_force: Counter[tuple[tuple[str, Threshold], ...]] = Counter()
    for _, part in heard[about.sha256]:
        if part.ends_s > last_s - LAST_S:
            in_force[tuple(part.thresholds.items())] += part.rows
    tables, still, spans = [], [], dict[str, tuple[float, float]]()
    for stretch in stretches(heard[about.sha256]):
        rows = [part.numbers(len(about.labels))[0] for _, part in stretch]
        tables.append(np.concatenate(rows))
        ends_s = np.concatenate([part.ends_s + np.arange(part.rows) * about.row_s for _, part in stretch])
        still += [tables[-1][among] for begin, end in quiet if (among := (begin < ends_s) & (ends_s <= end)).any()]
        if len(ends_s):
            name, (begin, end) = stretch[0][0].source, (ends_s[0] - about.row_s, ends_s[-1])
            old = spans.get(name, (begin, end))
            spans[name] = (min(old[0], begin), max(old[1], end))
    source = Source(about.sha256, about.labels, about.hop, about.sample_rate, dict(in_force.most_common(1)[0][0]), rounded=True)
    return Logged(source, tables, still, spans, [file for key, them in others.items() if key != about.sha256 for file in them])


@dataclass(frozen=True)
class Heard:
    """Scores of what was given, tables without a gap; quiet: of given times; audio: the recordings among it."""

    tables: list[Floats]
    quiet: list[Floats]
    audio: list[Path]
    said: str

    def hours(self, source: Source) -> float:
        return sum(map(len, self.tables)) * source.hop / source.rate / 3600


class Sound:
    """The model, where one is needed, and scores by it: of recordings it hears, of score logs that were written with it."""

    def __init__(self, file: Path | None, paths: Sequence[Path], needs_model: bool) -> None:

        self.file = file or shipped("urban.onnx")
        self.model = Model(self.file, "cpu") if needs_model or not all(logs([path]) for path in paths) else None
        self._logged: Source | None = None

    def of(self, paths: Sequence[Path], spans: Sequence[tuple[float, float]]) -> Heard:
        """What is in these files and folders; a folder that holds score logs counts with them alone."""

        written, audio = logs(paths), [path for path in paths if not logs([path])]
        tables: list[Floats] = []
        quiet: list[Floats] = []
        said = []
        if written:
            sha256 = self.model.description.sha256 if self.model else self._logged.sha256 if self._logged else None
            found = logged(written, sha256, spans)
            self._logged, tables, quiet = self._logged or found.source, found.tables, found.quiet
            for other in found.others:
                click.echo(f"{other}: was heard with another model, it does not count", err=True)
            for name, ends in found.spans.items():
                begin, end = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%MZ}" for at in ends)
                said.append(f"{name} from {begin} to {end}")
        files: list[Path] = []
        if audio:
            assert self.model
            files, partly = quiet_files(audio, self.model.description.properties["training"])
            for folder in partly:
                click.echo(f"{folder}: the model was trained with such a folder, the part of it left for this counts", err=True)
            tables += [scores_of_file(self.model, each) for each in _progress(files)]
            said.append(f"{len(files)} recordings")
        return Heard([table for table in tables if len(table)], quiet, files, ", ".join(said))

    def source(self) -> Source:
        """The thresholds in force are those of the last log, else the model's own."""
        if self._logged:
            return self._logged
        assert self.model
        d = self.model.description
        return Source(d.sha256, d.labels, d.hop, d.sample_rate, d.thresholds)


def _progress(files: list[Path]) -> Iterator[Path]:
    """The files, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from files
        return
    with click.progressbar(files, label="quiet sound", file=sys.stderr) as bar:
        yield from bar
