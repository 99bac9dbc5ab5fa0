"""Is an UrbanSound8K folder what it says? Each finding names a file and what to do; nothing is changed."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from detector.audio.file import SUFFIXES
from detector.errors import InputError
from trainer.checksums import lists_in, md5_of, read_list

# Clips of each class in folds 1 to 10, in the order of classID: Salamon, Jacoby and Bello, ACM Multimedia 2014.
OFFICIAL = {
    "air_conditioner": (100, 100, 100, 100, 100, 100, 100, 100, 100, 100),
    "car_horn": (36, 42, 43, 59, 98, 28, 28, 30, 32, 33),
    "children_playing": (100, 100, 100, 100, 100, 100, 100, 100, 100, 100),
    "dog_bark": (100, 100, 100, 100, 100, 100, 100, 100, 100, 100),
    "drilling": (100, 100, 100, 100, 100, 100, 100, 100, 100, 100),
    "engine_idling": (96, 100, 107, 107, 107, 107, 106, 88, 89, 93),
    "gun_shot": (35, 35, 36, 38, 40, 46, 51, 30, 31, 32),
    "jackhammer": (120, 120, 120, 120, 120, 68, 76, 78, 82, 96),
    "siren": (86, 91, 119, 166, 71, 74, 77, 80, 82, 83),
    "street_music": (100, 100, 100, 100, 100, 100, 100, 100, 100, 100),
}
FOLDS = range(1, 11)
COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
LONGEST_S = 4.05  # official clips last at most 4 s
NAME = re.compile(r"(\d+)-(\d+)-\d+-\d+\.wav")

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """One thing seen: where, what, and what to do about it. A note is worth knowing and no fault."""

    check: str
    where: str
    what: str
    fix: str = ""
    note: bool = False

    def __str__(self) -> str:
        return " ".join((f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")).splitlines())


@dataclass(frozen=True)
class Verdict:
    """The faults found in a folder of `clips` listed clips, and the notes."""

    clips: int
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        return not self.findings


@dataclass(frozen=True)
class Row:
    """A line of the CSV; length_s is end - start, salience 1 or 2; None and empty where it has no such columns."""

    line: int
    path: Path
    recording: str
    fold: int
    class_id: int
    label: str
    length_s: float | None
    salience: str


@dataclass(frozen=True)
class Heard:
    """What reading a file to its end tells; `error` is why that failed."""

    md5: str = ""
    duration_s: float = 0.0
    peak: float = 0.0
    finite: bool = True
    error: str = ""


def verify(root: Path, complete: bool = False, progress: Progress = lambda items, total: items) -> Verdict:
    """Check the counts, labels, folds, files, audio and checksums of a folder in UrbanSound8K's layout.

    complete: fewer clips than the official 8,732 are a finding, not a note. progress wraps the clips while they are decoded.
    Raises InputError when there is no CSV to check by.
    """
    table = root / "metadata" / "UrbanSound8K.csv"
    rows, seen = read_table(root)
    listed = {row.path for row in rows}
    disk = {path for path in (root / "audio").rglob("*") if path.is_file() and not _hidden(path.relative_to(root))}
    paths = sorted({path for path in listed if path.is_file()} | {path for path in disk if path.suffix.lower() in SUFFIXES})
    with ThreadPoolExecutor() as pool:
        heard = dict(zip(paths, progress(pool.map(_hear, paths), len(paths)), strict=True))
    official = 2 * sum(row.label in OFFICIAL for row in rows) >= len(rows)
    partial = len(listed) < sum(map(sum, OFFICIAL.values())) and not complete
    seen += _counts(rows, table, official, complete)
    seen += _labels(rows, table, official)
    seen += _files(rows, table, disk - listed)
    seen += _recordings(rows, table)
    seen += _audio(rows, heard)
    seen += _twins(heard)
    seen += _checksums(root, heard, complete, {table} if partial else set())
    return Verdict(len(rows), tuple(f for f in seen if not f.note), tuple(f for f in seen if f.note))


def read_table(root: Path) -> tuple[list[Row], list[Finding]]:
    """The rows of metadata/UrbanSound8K.csv that can be read, a finding for each that cannot. Raises InputError without a CSV."""
    table = root / "metadata" / "UrbanSound8K.csv"
    get = "get UrbanSound8K from https://urbansounddataset.weebly.com and give its folder"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(str(table), f"has no column {', '.join(missing)}", f"the official file has {', '.join(COLUMNS)}")
            lines = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(str(table), f"cannot be read ({error.strerror})", get) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(table), f"is not a CSV file ({error})", get) from error
    rows: list[Row] = []
    findings: list[Finding] = [] if lines else [Finding("labels", str(table), "lists no clip", get)]
    for line, row in lines:
        try:
            fold, class_id = int(row["fold"]), int(row["classID"])
        except (TypeError, ValueError):
            what = f"fold {row['fold']!r} and classID {row['classID']!r} must be whole numbers"
            findings.append(Finding("labels", f"{table}:{line}", what, "take the line from the official CSV"))
            continue
        try:
            length_s = float(row["end"]) - float(row["start"])
        except (KeyError, TypeError, ValueError):
            length_s = None
        path = root / "audio" / f"fold{fold}" / (row["slice_file_name"] or "")
        rows.append(Row(line, path, row["fsID"] or "", fold, class_id, row["class"] or "", length_s, row.get("salience") or ""))
    return rows, findings


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)  # .DS_Store is in the archive itself


def _hear(path: Path) -> Heard:
    md5 = ""
    try:
        md5 = md5_of(path)
        with soundfile.SoundFile(path) as sound:
            samples, peak, finite = 0, 0.0, True
            for block in sound.blocks(2**18, dtype="float32", always_2d=True):
                samples += len(block)
                peak = max(peak, float(np.abs(block).max()))
                finite = finite and bool(np.isfinite(block).all())
            return Heard(md5, samples / sound.samplerate, peak, finite)
    except OSError as error:
        return Heard(md5, error=f"cannot be read ({error.strerror})")
    except (soundfile.SoundFileError, TypeError):  # the latter for a name that ends in .raw
        return Heard(md5, error="cannot be decoded")


def _counts(rows: Sequence[Row], table: Path, official: bool, complete: bool) -> Iterator[Finding]:
    """Against the official counts, by fold and class."""
    if not official:
        what = f"its classes are {', '.join(sorted({row.label for row in rows}))}, not UrbanSound8K's ten: counts are not compared"
        yield Finding("counts", str(table), what, note=not complete)
        return
    have = Counter((row.fold, row.label) for row in {row.path: row for row in rows}.values())
    total, all_clips = have.total(), sum(map(sum, OFFICIAL.values()))
    if total < all_clips:
        what = f"{total:,} of {all_clips:,} clips: a part of UrbanSound8K"
        yield Finding("counts", str(table), what, "a figure trained on it is not comparable with published ones", not complete)
    for fold in FOLDS:
        want = {label: counts[fold - 1] for label, counts in OFFICIAL.items()}
        here = sum(have[fold, label] for label in want)
        fewer = [f"{label} {have[fold, label]} of {count}" for label, count in want.items() if have[fold, label] < count]
        if fewer:
            what = f"fold {fold}: {here:,} of {sum(want.values()):,} clips" + (f" ({', '.join(fewer)})" if here else "")
            yield Finding("counts", str(table), what, "extract the archive again" if complete else "", not complete)
        for label, count in want.items():
            if have[fold, label] > count:
                what = f"fold {fold} has {have[fold, label]} clips of {label}, the official one {count}"
                yield Finding("counts", str(table), what, "remove the lines that are not in the official CSV")


def _labels(rows: Sequence[Row], table: Path, official: bool) -> Iterator[Finding]:
    """classID, class and, in UrbanSound8K itself, the file's name say the same."""
    names = dict(enumerate(OFFICIAL)) if official else {}
    if not official:  # what most rows say, one to one
        for (class_id, label), _ in Counter((row.class_id, row.label) for row in rows).most_common():
            if class_id not in names and label not in names.values():
                names[class_id] = label
    for row in rows:
        where, name = f"{table}:{row.line}", row.path.name
        if names.get(row.class_id) != row.label:
            is_ = names.get(row.class_id, "none of the classes")
            yield Finding(
                "labels", where, f"{name} has classID {row.class_id} and class {row.label}", f"classID {row.class_id} is {is_}"
            )
        if row.fold not in FOLDS:
            yield Finding("labels", where, f"{name} is in fold {row.fold}", "folds are 1 to 10")
        match = NAME.fullmatch(name)
        if official and not match:
            yield Finding(
                "labels", where, f"{name} is not named fsID-classID-occurrenceID-sliceID.wav", "give it its official name"
            )
        elif official and match and (match[1], int(match[2])) != (row.recording, row.class_id):
            what = f"{name} is listed with fsID {row.recording} and classID {row.class_id}, its name says {match[1]} and {match[2]}"
            yield Finding("labels", where, what, "take the line from the official CSV")


def _files(rows: Sequence[Row], table: Path, unlisted: Iterable[Path]) -> Iterator[Finding]:
    """Every row has its own file, every file its row."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path.name, row)
        if other is not row:
            what = f"{row.path.name} is listed on line {other.line} already"
            yield Finding("files", f"{table}:{row.line}", what, "remove one of the lines")
        if not row.path.is_file():
            yield Finding("files", str(row.path), f"is listed on line {row.line} and is not there", "get it, or remove the line")
    for path in sorted(unlisted):
        yield Finding("files", str(path), f"is not listed in {table.name}", "remove it, or use the official CSV")


def _recordings(rows: Sequence[Row], table: Path) -> Iterator[Finding]:
    """No recording is in two folds with one class. With two classes it is, in the official folds too (fsID 132016, 176638)."""
    folds: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        folds[row.recording][row.label].add(row.fold)
    for recording, of_label in folds.items():
        for label, where in of_label.items():
            if len(where) > 1:
                what = f"recording {recording} ({label}) is in folds {', '.join(map(str, sorted(where)))}"
                fix = "keep it in one: a test would hear what was trained on"
                yield Finding("folds", str(table), what, fix)
        if len(set.union(*of_label.values())) > 1 and all(len(where) == 1 for where in of_label.values()):
            what = ", ".join(f"in fold {min(where)} as {label}" for label, where in of_label.items())
            yield Finding("folds", str(table), f"recording {recording} is {what}", note=True)


def _audio(rows: Sequence[Row], heard: Mapping[Path, Heard]) -> Iterator[Finding]:
    """Every file decodes to a finite sound of a clip's length."""
    length_s = {row.path: row.length_s for row in rows}
    for path, sound in heard.items():
        expected_s = length_s.get(path)
        again = "extract it from the archive again"
        if sound.error:
            yield Finding("audio", str(path), sound.error, again)
        elif sound.duration_s == 0:
            yield Finding("audio", str(path), "has no samples", again)
        elif not sound.finite:
            yield Finding("audio", str(path), "holds values that are no finite numbers", again)
        elif sound.duration_s > LONGEST_S:
            yield Finding("audio", str(path), f"lasts {sound.duration_s:.2f} s, a clip at most 4 s", "cut it")
        elif expected_s is not None and abs(sound.duration_s - expected_s) > 0.1:
            what = f"lasts {sound.duration_s:.2f} s, by the CSV {expected_s:.2f} s"
            yield Finding("audio", str(path), what, "is it an unfinished download?", note=True)
        if not sound.error and sound.duration_s and sound.finite and sound.peak == 0:
            yield Finding("audio", str(path), "is digital silence", note=True)


def _twins(heard: Mapping[Path, Heard]) -> Iterator[Finding]:
    """Files with the same bytes: a leak between folds, a note within one."""
    same: dict[str, list[Path]] = defaultdict(list)
    for path, sound in heard.items():
        if sound.duration_s:
            same[sound.md5].append(path)
    for first, *others in same.values():
        for other in others:
            leak = first.parent != other.parent
            what = f"has the same bytes as {first}" + (" in another fold" if leak else "")
            fix = "remove one: a test would hear what was trained on" if leak else ""
            yield Finding("twins", str(other), what, fix, note=not leak)


def _checksums(root: Path, heard: Mapping[Path, Heard], complete: bool, changed: set[Path]) -> Iterator[Finding]:
    """Against the archive's own index (*_index*.json, [path, md5]) or md5sum's list (*.md5); `changed` files may differ."""
    lists = lists_in(root)
    if not lists:
        what = "has no *_index.json and no *.md5: checksums are not checked"
        yield Finding("checksums", str(root), what, "put the archive's index there to check them", note=True)
    for file in lists:
        try:
            pairs, bad = read_list(file)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no JSON" if file.suffix == ".json" else "no text"
            yield Finding("checksums", str(file), f"cannot be read ({why})", "get it again, or remove it")
            continue
        for line in bad:
            yield Finding("checksums", f"{file}:{line}", "is not `MD5  path`", "write the list with md5sum")
        absent = 0
        for name, md5 in pairs:
            path = next((path for path in (root / name, file.parent / name) if path.is_file()), None)
            if path is None:
                absent += 1
                if complete:
                    yield Finding("checksums", str(root / name), f"is listed in {file.name} and is not there", "get it")
                continue
            if (heard[path] if path in heard else _hear(path)).md5 != md5.lower():
                note = path in changed
                fix = "this part of the data has its own" if note else "it was changed or damaged: get it again"
                yield Finding("checksums", str(path), f"has not the checksum of {file.name}", fix, note)
        what = f"{len(pairs) - absent:,} of its {len(pairs):,} checksums are checked"
        fix = "" if pairs and not absent else "the other files are not here" if pairs else "get it again, or remove it"
        yield Finding("checksums", str(file), what, fix, note=bool(pairs))
