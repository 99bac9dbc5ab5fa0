"""The folder of clips: SOURCE/YYYY-MM-DD/HHMMSS.mmmZ_LABEL_SESSION-ONSET.flac, written whole, never more bytes than allowed.

What is there is read from the names and sizes themselves, once. Nothing that has no such name is ever touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detector.errors import ConfigError, TryAgainError
from detector.publish.outbox import CLOCK_IS_SET_S

PLAIN, SEALED = ".flac", ".flac.age"
FILE = re.compile(r"\d{6}\.\d{3}Z_(?P<label>[\w.-]+)_[0-9a-f]+-\d+\.flac(\.age)?")
PART = re.compile(rf"\.{FILE.pattern}\.part")
DAY = re.compile(r"\d{4}-\d\d-\d\d")
FILE_MODE, FOLDER_MODE = 0o640, 0o750
"""Whatever the umask: the group may listen, others may not."""

Kept = tuple[str, int]
"""A clip's name and its bytes."""


def name_of(event: Mapping[str, Any], ending: str) -> str:
    """Of the clip of an event, the same in each of its phases: a path in the folder."""
    day, time = event["start"].split("T")
    onset = event["id"].rpartition("-")[2]
    return f"{event['source']}/{day}/{time.replace(':', '')}_{event['label']}_{event['session']}-{onset}{ending}"


class Shelf:
    """Keeps clips in the folder. Raises OSError where the disk does. Of one thread, but for `count` and `size_bytes`."""

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float) -> None:
        self._folder, self._max_bytes, self._max_age_s = folder, max_bytes, max_age_s
        self._lock = -1
        self._known = False
        self.count = self.size_bytes = 0
        self._forget()

    def lock(self) -> None:
        """Make the folder where it is not there, and have it for this process alone. Raises TryAgainError when another has it."""
        if self._lock >= 0:
            return
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            self._folder.chmod(FOLDER_MODE)
        lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            what, fix = "another urbandetect keeps its clips there", "stop that one, or give this one its own clips.folder"
            raise TryAgainError(f"clips {self._folder}", what, fix) from error
        except OSError:  # a file system without locks
            pass
        self._lock = lock

    def unlock(self) -> None:
        """Let go of the folder, and of what is known of it: another disk may be there next time."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._known = -1, False

    def tidy(self, now_s: float) -> None:
        """Know what is there, the first time without what a crash has left half written; let go of what is too old or too much."""
        if not self._known:
            self._forget()
            for name, size in clips(self._folder, clean=True):
                self._labels[_label(name)].append((name, size))
                self.count, self.size_bytes = self.count + 1, self.size_bytes + size
            for label, kept in self._labels.items():
                kept.sort(key=_when)
                self._bytes[label] = sum(size for _, size in kept)
            self._known = True
        set_, too_old = (_moment(at_s) for at_s in (CLOCK_IS_SET_S, now_s - self._max_age_s))
        for kept in self._labels.values():
            first = bisect_left(kept, set_, key=_when)  # before it a clock was wrong: nobody knows how old they are
            for _ in range(bisect_left(kept, too_old, key=_when) - first):
                self._remove(kept, first)
        self._make_room("", 0)

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all, after room has been made for it. Raises ConfigError for what is larger than all may be."""
        if len(data) > self._max_bytes:
            raise ConfigError(f"clips {self._folder}", f"{len(data) / 1e6:.1f} MB are more than clips.max_mb", "set a larger one")
        label, path = _label(name), self._folder / name
        self._make_room(label, len(data))
        part = path.with_name(f".{path.name}.part")
        for folder in (path.parent.parent, path.parent):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(FOLDER_MODE)
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE), "wb") as file:
                os.fchmod(file.fileno(), FILE_MODE)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        insort(self._labels[label], (name, len(data)), key=_when)
        self.count, self.size_bytes = self.count + 1, self.size_bytes + len(data)
        self._bytes[label] += len(data)

    def _make_room(self, label: str, size: int) -> None:
        """For a clip of this label. Of the labels with more than one, the largest in bytes loses its oldest, again and again; where
        each has but one, the oldest of all goes. So the last of a rare label outlives those of common ones."""
        while self.size_bytes + size > self._max_bytes:
            there = [each for each, kept in self._labels.items() if kept]
            several = [each for each in there if len(self._labels[each]) + (each == label) > 1]
            if several:
                loser = max(several, key=lambda each: self._bytes[each] + (size if each == label else 0))
            else:
                loser = min(there, key=lambda each: _when(self._labels[each][0]))
            self._remove(self._labels[loser], 0)

    def _remove(self, kept: list[Kept], at: int) -> None:
        name, size = kept[at]
        path = self._folder / name
        path.unlink(missing_ok=True)
        del kept[at]
        self.count, self.size_bytes = self.count - 1, self.size_bytes - size
        self._bytes[_label(name)] -= size
        with contextlib.suppress(OSError):  # it is not empty
            path.parent.rmdir()

    def _forget(self) -> None:
        self._labels: defaultdict[str, list[Kept]] = defaultdict(list)
        self._bytes: Counter[str] = Counter()
        self.count = self.size_bytes = 0


def clips(folder: Path, clean: bool = False) -> Iterator[Kept]:
    """Every clip in the folder; clean: without what was left half written, which goes. Links are not followed."""
    for source in _folders(folder):
        for day in _folders(source.path):
            if not DAY.fullmatch(day.name):
                continue
            with os.scandir(day.path) as files:
                for file in files:
                    if FILE.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                        yield f"{source.name}/{day.name}/{file.name}", file.stat(follow_symlinks=False).st_size
                    elif clean and PART.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                        Path(file.path).unlink()


def _folders(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except PermissionError:  # none of ours, as a disk's lost+found
        return []


def _label(name: str) -> str:
    match = FILE.fullmatch(name.rpartition("/")[2])
    assert match, name
    return match["label"]


def _when(kept: Kept) -> str:
    """What orders clips by when their events began."""
    return kept[0].partition("/")[2]


def _moment(at_s: float) -> str:
    """Unix time as `_when` writes it."""
    return datetime.fromtimestamp(max(0.0, at_s), UTC).strftime("%Y-%m-%d/%H%M%S")
