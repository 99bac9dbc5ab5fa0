"""UrbanSound8K's folds and any folder of backgrounds, decoded once into one memory-mapped file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from detector.audio.devices import silence
from detector.audio.file import SUFFIXES, must_be_readable
from detector.errors import InputError

COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
LONGEST_BACKGROUND_S = 60.0
FULL_SCALE = 32768


@dataclass(frozen=True)
class Clip:
    """One labelled clip; target is the position of its class among the data set's labels, recording the one it was cut from."""

    path: Path
    fold: int
    target: int
    recording: str


@dataclass(frozen=True)
class DataSet:
    """The clips of an UrbanSound8K folder; labels in the order of classID."""

    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]

    @property
    def paths(self) -> list[Path]:
        return [clip.path for clip in self.clips]

    def without(self, names: Sequence[str]) -> DataSet:
        """The data set without the clips of these paths."""
        return replace(self, clips=tuple(clip for clip in self.clips if str(clip.path) not in names))

    def of_folds(self, folds: Sequence[int]) -> list[int]:
        """Positions in `clips` of the clips in these folds."""
        return [index for index, clip in enumerate(self.clips) if clip.fold in folds]

    @property
    def folds(self) -> list[int]:
        return sorted({clip.fold for clip in self.clips})

    def validation_fold(self, test_fold: int | None) -> int:
        """The fold to validate on: the smallest one that is not tested and has every class."""
        complete = [
            fold
            for fold in self.folds
            if fold != test_fold and len({c.target for c in self.clips if c.fold == fold}) == len(self.labels)
        ]
        if not complete:
            raise InputError(str(self.root), "no fold is left that has every class to validate on", "name one with --val-fold")
        return min(complete, key=lambda fold: len(self.of_folds([fold])))


@dataclass(frozen=True)
class Split:
    """Which folds train, which choose the epoch, and which are tested, once."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def protocol(self) -> str:
        """`honest`, or `reference` where the fold that is reported also chose the epoch."""
        return "reference: the epoch was chosen on the fold that is reported" if set(self.validation) & set(self.test) else "honest"

    def as_json(self) -> dict[str, list[int]]:
        """The folds as a model's metadata has them."""
        return {name: list(folds) for name, folds in vars(self).items()}

    @property
    def validation_name(self) -> str:
        return folds_in_words(self.validation)

    @property
    def test_name(self) -> str:
        return folds_in_words(self.test)


def folds_in_words(folds: Sequence[int]) -> str:
    """`fold 1`, `folds 1, 2`, or `none`."""
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}" if folds else "none"


def must_have(data: DataSet, folds: Sequence[int]) -> None:
    """Raise InputError for a fold without clips."""
    for fold in folds:
        if fold not in data.folds:
            raise InputError(str(data.root), f"fold {fold} has no clips", f"folds here: {', '.join(map(str, data.folds))}")


def split(data: DataSet, test: int | None, validation: int | None = None, protocol: str = "honest") -> Split:
    """One fold tested, another chooses the epoch, the others train; test None holds no fold out, for a model to ship.

    protocol `reference` chooses the epoch on the tested fold, as the reference did. Raises InputError for a fold without clips.
    """
    must_have(data, [fold for fold in (test, validation) if fold is not None])
    if protocol == "reference":
        if test is None or validation not in (None, test):
            raise InputError("--protocol reference", "chooses the epoch on the fold it tests", "give --fold K and no --val-fold")
        validation = test
    elif validation is not None and validation == test:
        raise InputError("--val-fold", f"fold {test} cannot both choose the epoch and test it", "name another fold")
    validation = validation or data.validation_fold(test)
    train = tuple(fold for fold in data.folds if fold not in (test, validation))
    return Split(train, (validation,), () if test is None else (test,))


def load_dataset(root: str | Path) -> DataSet:
    """Read the official layout: metadata/UrbanSound8K.csv and audio/fold1 ... audio/fold10.

    Raises InputError for a missing folder, CSV, column, value or audio file, naming it.
    """
    root = Path(root)
    table = root / "metadata" / "UrbanSound8K.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(str(table), f"has no column {', '.join(missing)}", f"the official file has {', '.join(COLUMNS)}")
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(
            str(table),
            f"cannot be read ({error.strerror})",
            "get UrbanSound8K from https://urbansounddataset.weebly.com and give its folder with --data",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(table), f"is not a CSV file ({error})", "use the file that comes with UrbanSound8K") from error
    names: dict[int, str] = {}
    found: list[tuple[str, int, int, str]] = []
    for line, row in rows:
        try:
            fold, class_id = int(row["fold"]), int(row["classID"])
        except (TypeError, ValueError):
            raise InputError(
                f"{table}:{line}", f"fold {row['fold']!r} and classID {row['classID']!r} must be whole numbers"
            ) from None
        if names.setdefault(class_id, row["class"]) != row["class"]:
            raise InputError(f"{table}:{line}", f"classID {class_id} is {names[class_id]} above and {row['class']} here")
        found.append((row["slice_file_name"], fold, class_id, row["fsID"]))
    if not found:
        raise InputError(str(table), "lists no clip")
    order = sorted(names)
    clips = tuple(
        Clip(root / "audio" / f"fold{fold}" / name, fold, order.index(class_id), recording)
        for name, fold, class_id, recording in found
    )
    for clip in clips:
        if not clip.path.is_file():
            raise InputError(str(clip.path), f"is listed in {table.name} but is not there")
    return DataSet(root, tuple(names[class_id] for class_id in order), clips)


PARTS = {"train": (0, 1, 2, 3, 4), "choose": (5, 6), "test": (7, 8, 9), "ship": (0, 1, 2, 3, 4, 7, 8, 9)}
"""Which tenths of the background recordings train, which choose thresholds, and which only measure false events; a model to ship is
tested on nothing here, and trains on all but those that choose."""


def background_files(folders: Sequence[Path], part: str = "train") -> list[Path]:
    """The audio files under `folders` of one of PARTS.

    Parts of one recording (`2-103426-A`, `2-103426-B`) stay together: the CRC-32 of the name before its last dash decides.
    """
    files = []
    for folder in folders:
        here = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not here:
            raise InputError(str(folder), "holds no audio file", f"a background folder holds {', '.join(sorted(SUFFIXES))} files")
        files += here
    chosen = [path for path in files if zlib.crc32(path.stem.rsplit("-", 1)[0].encode()) % 10 in PARTS[part]]
    if not chosen:
        names = ", ".join(map(str, folders))
        raise InputError(names, f"holds too few recordings ({len(files)} files) to leave some to {part}", "add some")
    return chosen


@dataclass(frozen=True)
class Decoded:
    """Decoded audio: clip i is samples[starts[i] : starts[i + 1]], int16 at one rate, [samples] or [samples, channels]."""

    samples: NDArray[np.int16]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int16]:
        return self.samples[self.starts[index] : self.starts[index + 1]]


def read_audio(path: Path, rate: int, channels: str = "avg") -> NDArray[np.float32]:
    """The whole of an audio file as float32 at `rate`: [samples], the mean of its channels or with `mono` the first; with `stereo`
    [samples, 2], a mono file twice. Raises InputError naming the file when it is damaged, empty or holds what is no number."""
    must_be_readable(path, str(path))
    silence()
    try:
        audio, native = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(str(path), "cannot be decoded", "is it a damaged or unfinished download?") from error
    if channels == "stereo":
        audio = audio[:, :2] if audio.shape[1] > 1 else np.repeat(audio, 2, axis=1)
    else:
        audio = audio[:, 0] if channels == "mono" else audio.mean(axis=1, dtype=np.float32)
    if not np.isfinite(audio).all():
        raise InputError(str(path), "holds values that are no numbers", "is it a damaged file?")
    audio = audio if native == rate else np.asarray(soxr.resample(audio, native, rate), np.float32)
    if not len(audio):
        raise InputError(str(path), "holds no sample", "is it an unfinished download?")
    return audio


def decode(
    paths: Sequence[Path],
    rate: int,
    *,
    channels: str = "avg",
    workers: int = 0,
    bad: Callable[[InputError], None] | None = None,
) -> Decoded:
    """Every file as int16 at `rate`, decoded once: the result stays in the user's cache folder, mapped into memory.

    Raises InputError naming the first file that cannot be used; with `bad` each is told to it instead and stays empty.
    """
    try:
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise InputError(str(error.filename), f"cannot be read ({error.strerror})") from error
    key = hashlib.sha256(json.dumps([rate, channels, LONGEST_BACKGROUND_S, stamps]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "urbandetect"
    audio_file, index_file = folder / f"{key}.i16", folder / f"{key}.npy"

    def one(path: Path) -> NDArray[np.int16]:
        try:
            audio = read_audio(path, rate, channels)[: int(LONGEST_BACKGROUND_S * rate)]
        except InputError as error:
            if bad is None:
                raise
            bad(error)
            audio = np.zeros((0, 2) if channels == "stereo" else 0, np.float32)
        return np.clip(np.round(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)

    if index_file.exists() and audio_file.exists():
        starts = np.load(index_file)
        for index in np.flatnonzero(np.diff(starts) == 0).tolist():
            one(paths[index])
    else:
        partial, lengths = folder / f"{key}.{os.getpid()}.partial", [0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out, ThreadPoolExecutor(workers or None) as pool:
                for first in range(0, len(paths), 256):
                    for samples in pool.map(one, paths[first : first + 256]):
                        out.write(samples.tobytes())
                        lengths.append(len(samples))
            partial.replace(audio_file)
            starts = np.cumsum(lengths, dtype=np.int64)
            with partial.open("wb") as out:
                np.save(out, starts)
            partial.replace(index_file)
        except OSError as error:
            raise InputError(
                str(folder), f"decoded audio cannot be kept there ({error.strerror})", "set XDG_CACHE_HOME to a place"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    samples = np.memmap(audio_file, np.int16, "r") if starts[-1] else np.zeros(0, np.int16)
    return Decoded(samples.reshape(-1, 2) if channels == "stereo" else samples, starts)
