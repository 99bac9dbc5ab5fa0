"""What is in an UrbanSound8K folder: facts, gathered once and told as tables."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from detector.audio.level import dbfs
from detector.errors import InputError
from trainer.verify import FOLDS, OFFICIAL, Progress, Row, read_table

BINS = 16


@dataclass(frozen=True)
class Sound:
    """One decoded clip: rate in Hz, depth as libsndfile names it (PCM_16), RMS level of the mono mix in dBFS."""

    rate: int
    channels: int
    depth: str
    duration_s: float
    level_dbfs: float


@dataclass(frozen=True)
class ClassFacts:
    """The clips of one class.

    clips, recordings, official: how many in each fold; official is empty for classes that are not UrbanSound8K's.
    duration_s: minimum, median, maximum; histogram: clips in BINS equal parts of 0 to Facts.longest_s; short: the share under 4 s.
    salience: clips by the CSV's column, empty without one; level_dbfs: 10th percentile, median, 90th; example: a clip of it.
    """

    label: str
    clips: dict[int, int]
    recordings: dict[int, int]
    official: dict[int, int]
    duration_s: tuple[float, float, float]
    histogram: tuple[int, ...]
    short: float
    salience: dict[str, int]
    level_dbfs: tuple[float, float, float]
    example: str


@dataclass(frozen=True)
class Facts:
    """What a data set is made of; rates, channels and depths count clips, recordings the fsIDs of each fold."""

    root: str
    folds: tuple[int, ...]
    classes: tuple[ClassFacts, ...]
    recordings: dict[int, int]
    total_recordings: int
    total_s: float
    longest_s: float
    rates: dict[int, int]
    channels: dict[int, int]
    depths: dict[str, int]


@dataclass(frozen=True)
class Table:
    """A table to be told: every row begins with its name; the last `totals` rows are sums."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: int = 0


def facts(root: Path, seed: int = 0, progress: Progress = lambda items, total: items) -> Facts:
    """Read the CSV and decode every clip. progress wraps the clips while they are decoded.

    Raises InputError for a line of the CSV that cannot be used and for a clip that cannot be decoded, naming it.
    """
    rows, wrong = read_table(root)
    if wrong:
        raise InputError(wrong[0].where, wrong[0].what, wrong[0].fix)
    with ThreadPoolExecutor() as pool:
        sounds: list[Sound] = list(progress(pool.map(_hear, [row.path for row in rows]), len(rows)))
    of_class: dict[str, list[tuple[Row, Sound]]] = defaultdict(list)
    for row, sound in sorted(zip(rows, sounds, strict=True), key=lambda pair: pair[0].class_id):
        of_class[row.label].append((row, sound))
    official = set(of_class) <= set(OFFICIAL)
    folds = tuple(sorted({row.fold for row in rows} | set(FOLDS if official else ())))
    longest_s = max(4.0, *(sound.duration_s for sound in sounds))
    draw = random.Random(seed)
    classes = []
    for label, pairs in of_class.items():
        seconds = np.array([sound.duration_s for _, sound in pairs])
        levels = np.percentile([sound.level_dbfs for _, sound in pairs], [10, 50, 90])
        classes.append(
            ClassFacts(
                label,
                clips=_per_fold(folds, (row.fold for row, _ in pairs)),
                recordings=_per_fold(folds, (fold for fold, _ in {(row.fold, row.recording) for row, _ in pairs})),
                official=dict(zip(FOLDS, OFFICIAL[label], strict=True)) if official else {},
                duration_s=(float(seconds.min()), float(np.median(seconds)), float(seconds.max())),
                histogram=tuple(np.histogram(seconds, BINS, (0.0, longest_s))[0].tolist()),
                short=float((seconds.round(2) < 4).mean()),
                salience=dict(sorted(Counter(row.salience for row, _ in pairs if row.salience).items())),
                level_dbfs=(float(levels[0]), float(levels[1]), float(levels[2])),
                example=str(draw.choice(pairs)[0].path.relative_to(root)),
            )
        )
    return Facts(
        str(root),
        folds,
        tuple(classes),
        recordings=_per_fold(folds, (fold for fold, _ in {(row.fold, row.recording) for row in rows})),
        total_recordings=len({row.recording for row in rows}),
        total_s=sum(sound.duration_s for sound in sounds),
        longest_s=longest_s,
        rates=dict(Counter(sound.rate for sound in sounds).most_common()),
        channels=dict(Counter(sound.channels for sound in sounds).most_common()),
        depths=dict(Counter(sound.depth for sound in sounds).most_common()),
    )


def _per_fold(folds: Iterable[int], found: Iterable[int]) -> dict[int, int]:
    counts = Counter(found)
    return {fold: counts[fold] for fold in folds}


def _hear(path: Path) -> Sound:
    mono, rate, channels, depth = decode(path)
    with np.errstate(all="ignore"):
        mean_square = float(np.square(mono).mean()) if len(mono) else 0.0
    if not math.isfinite(mean_square):
        raise InputError(str(path), "holds values that are no finite numbers", "extract it from the archive again")
    return Sound(rate, channels, depth, len(mono) / rate, dbfs(mean_square))


def decode(path: Path) -> tuple[NDArray[np.float64], int, int, str]:
    """Mono samples at the file's own rate, that rate, its channels and depth. Raises InputError naming the file."""
    try:
        with soundfile.SoundFile(path) as sound, np.errstate(all="ignore"):
            return sound.read(always_2d=True).mean(axis=1), sound.samplerate, sound.channels, sound.subtype
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        what = "cannot be decoded" if path.is_file() else "is listed in the CSV and is not there"
        raise InputError(str(path), what, "`urbandetect data verify` names all such files") from error


def tables(facts: Facts) -> tuple[Table, ...]:
    """The facts as numbers: the same tables in the text and on the page."""
    folds, classes = facts.folds, facts.classes
    total = {fold: sum(c.clips[fold] for c in classes) for fold in folds}
    official = {fold: sum(c.official.get(fold, 0) for c in classes) for fold in folds}
    clips, whole = sum(total.values()), sum(official.values())
    of_whole = f" Of UrbanSound8K's {whole:,} clips in these classes {_share(clips, whole)} are here." if whole else ""
    rows = []
    for c in classes:
        here, there = sum(c.clips.values()), sum(c.official.values())
        rows.append((c.label, *_counts(c.clips.values()), f"{here:,}", *([f"{there:,}", _share(here, there)] if whole else [])))
    rows.append(("total", *_counts(total.values()), f"{clips:,}", *([f"{whole:,}", _share(clips, whole)] if whole else [])))
    if whole:
        rows.append(("official", *_counts(official.values()), f"{whole:,}", "", ""))
        rows.append(("share", *(_share(total[fold], official[fold]) for fold in folds), _share(clips, whole), "", ""))
    heads = ("class \\ fold", *map(str, folds), "total")
    known = [c for c in classes if c.salience]
    values = sorted({value for c in known for value in c.salience})
    meaning = {"1": "1 foreground", "2": "2 background"}
    kinds: list[tuple[str, dict[str, int]]] = [
        ("sample rate", {f"{rate:,} Hz": count for rate, count in facts.rates.items()}),
        ("channels", {str(channels): count for channels, count in facts.channels.items()}),
        ("bit depth", facts.depths),
    ]
    found = (
        Table(
            "Clips",
            f"{clips:,} clips of {len(classes)} classes, {facts.total_s / 3600:.2f} h.{of_whole}",
            (*heads, *(("official", "share") if whole else ())),
            tuple(rows),
            totals=3 if whole else 1,
        ),
        Table(
            "Recordings",
            f"{facts.total_recordings:,} recordings (fsID): clips of one recording are not independent. "
            "One that has several classes counts once in each, and once in the total.",
            heads,
            (
                *((c.label, *_counts(c.recordings.values()), f"{sum(c.recordings.values()):,}") for c in classes),
                ("total", *_counts(facts.recordings.values()), f"{facts.total_recordings:,}"),
            ),
            totals=1,
        ),
        Table(
            "Durations",
            "In seconds.",
            ("class", "min", "median", "max", "under 4 s"),
            tuple((c.label, *(f"{value:.2f}" for value in c.duration_s), f"{c.short:.1%}") for c in classes),
        ),
        Table(
            "Files",
            "As they are on disk, before any resampling.",
            ("property", "value", "clips", "share"),
            tuple((kind, v, f"{count:,}", _share(count, clips)) for kind, counts in kinds for v, count in counts.items()),
        ),
        Table(
            "Salience",
            "How the sound stands out, as its annotators heard it.",
            ("class", *(meaning.get(value, value) for value in values)),
            tuple((c.label, *(f"{c.salience.get(value, 0):,}" for value in values)) for c in known),
        ),
        Table(
            "Loudness",
            "RMS level of each clip in dBFS; a full-scale sine is 0 dBFS.",
            ("class", "10 %", "median", "90 %"),
            tuple((c.label, *(f"{value:.1f}" for value in c.level_dbfs)) for c in classes),
        ),
    )
    return tuple(table for table in found if table.rows)


def _counts(counts: Iterable[int]) -> list[str]:
    return [f"{count:,}" for count in counts]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


def text(facts: Facts) -> str:
    """The facts for a terminal."""
    lines = [facts.root]
    for table in tables(facts):
        widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
        lines += ["", table.title, table.note, ""]
        for row in (table.head, *table.rows):
            first, *others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    return "\n".join(lines)
