"""UrbanSound8K's folds and any folder of backgrounds, decoded once into one memory-mapped file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from detector.errors import InputError

COLUMNS = ("slice_file_name", "fold", "classID", "class")
AUDIO = {".wav", ".flac", ".ogg", ".aif", ".aiff"}
LONGEST_BACKGROUND_S = 60.0


@dataclass(frozen=True)
class Clip:
    """One labelled clip; target is the position of its class among the data set's labels."""

    path: Path
    fold: int
    target: int


@dataclass(frozen=True)
class DataSet:
    """The clips of an UrbanSound8K folder; labels in the order of classID."""

    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]

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


def load_dataset(root: Path) -> DataSet:
    """Read the official layout: metadata/UrbanSound8K.csv and audio/fold1 ... audio/fold10.

    Raises InputError for a missing folder, CSV, column, value or audio file, naming it.
    """
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
    found: list[tuple[str, int, int]] = []
    for line, row in rows:
        try:
            fold, class_id = int(row["fold"]), int(row["classID"])
        except (TypeError, ValueError):
            raise InputError(
                f"{table}:{line}", f"fold {row['fold']!r} and classID {row['classID']!r} must be whole numbers"
            ) from None
        if names.setdefault(class_id, row["class"]) != row["class"]:
            raise InputError(f"{table}:{line}", f"classID {class_id} is {names[class_id]} above and {row['class']} here")
        found.append((row["slice_file_name"], fold, class_id))
    if not found:
        raise InputError(str(table), "lists no clip")
    order = sorted(names)
    clips = tuple(Clip(root / "audio" / f"fold{fold}" / name, fold, order.index(class_id)) for name, fold, class_id in found)
    for clip in clips:
        if not clip.path.is_file():
            raise InputError(str(clip.path), f"is listed in {table.name} but is not there")
    return DataSet(root, tuple(names[class_id] for class_id in order), clips)


def background_files(folders: Sequence[Path], held_out: bool = False) -> list[Path]:
    """The half of the audio files under `folders` to train with, or with `held_out` the other half.

    Parts of one recording (`2-103426-A`, `2-103426-B`) stay together: the CRC-32 of the name before its last dash decides.
    """
    files = []
    for folder in folders:
        here = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)
        if not here:
            raise InputError(str(folder), "holds no audio file", f"a background folder holds {', '.join(sorted(AUDIO))} files")
        files += here
    half = [path for path in files if zlib.crc32(path.stem.rsplit("-", 1)[0].encode()) % 2 == held_out]
    if not half:
        names = ", ".join(map(str, folders))
        raise InputError(
            names, f"holds too few recordings ({len(files)} files) for one half to train and one to choose by", "add some"
        )
    return half


@dataclass(frozen=True)
class Decoded:
    """Decoded audio: clip i is samples[starts[i] : starts[i + 1]], int16 at one rate."""

    samples: NDArray[np.int16]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int16]:
        return self.samples[self.starts[index] : self.starts[index + 1]]


def read_mono(path: Path, rate: int) -> NDArray[np.float32]:
    """The whole of an audio file as mono float32 at `rate`. Raises InputError naming the file."""
    try:
        audio, native = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(str(path), "cannot be decoded", "is it a damaged or unfinished download?") from error
    mono = audio.mean(axis=1, dtype=np.float32)
    return mono if native == rate else np.asarray(soxr.resample(mono, native, rate), np.float32)


def decode(paths: Sequence[Path], rate: int, longest_s: float = LONGEST_BACKGROUND_S) -> Decoded:
    """Every file as mono int16 at `rate`, decoded once: the result stays in the user's cache folder, mapped into memory."""
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([rate, longest_s, stamps]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "urbandetect"
    audio_file, index_file = folder / f"{key}.i16", folder / f"{key}.npy"
    if not index_file.exists():

        def one(path: Path) -> NDArray[np.int16]:
            mono = read_mono(path, rate)[: int(longest_s * rate)]
            return np.clip(np.round(mono * 32768), -32768, 32767).astype(np.int16)

        partial, starts = folder / f"{key}.{os.getpid()}.partial", [0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out, ThreadPoolExecutor() as pool:
                for first in range(0, len(paths), 256):
                    for samples in pool.map(one, paths[first : first + 256]):
                        out.write(samples.tobytes())
                        starts.append(starts[-1] + len(samples))
            partial.replace(audio_file)
            with partial.open("wb") as out:
                np.save(out, np.array(starts, np.int64))
            partial.replace(index_file)
        except OSError as error:
            raise InputError(
                str(folder), f"decoded audio cannot be kept there ({error.strerror})", "set XDG_CACHE_HOME to a place"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    return Decoded(np.memmap(audio_file, np.int16, "r"), np.load(index_file))
