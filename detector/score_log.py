"""The scores of every source, written down as they come: to see later why something was told or not, and to choose thresholds from.

The daemon's loop only collects; a thread of its own packs and writes. A disk that is slow, full or gone costs rows of the log,
counted and said, and never a moment of hearing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.level import dbfs
from detector.audio.source import Floats
from detector.config import Settings, node_name, scores_folder
from detector.errors import ConfigError, TryAgainError, UrbandetectError, not_written
from detector.model import Description, Threshold
from detector.observer import Observer, Sound
from detector.publish.outbox import CLOCK_IS_SET_S
from detector.score_file import SUFFIX, About, Part, Told, block, header, pack_numbers
from detector.tracker import Change

log = logging.getLogger(__name__)

BLOCK_S = 30.0
"""So much is lost when the program is killed; longer blocks would hardly be smaller."""
SOON_S = 5.0
"""A block in which an event has ended is no longer: who sees the event may ask why at once."""
WAITING = 64
"""Blocks on their way to the disk: half an hour of one source, a megabyte."""
FILES = 16
"""A file takes at most this part of the room, so that little goes when the oldest has to."""
LOOK_S = 3600.0
"""The folder is looked through when a file is begun, when it is full, and so often: for what is too old, or another daemon's."""
STOP_S = 2.0
"""At the end the disk has so long for what is left."""


@dataclass
class _Open:
    """The part of a source that is being collected."""

    session: str
    first: int
    ends_s: float
    thresholds: Mapping[str, Threshold]
    most_rows: int
    scores: list[Floats] = field(default_factory=list)
    mean_squares: list[NDArray[np.float64]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    rows: int = 0
    next: int = 0

    def leads_to(self, sound: Sound) -> bool:
        """Whether this sound follows without a gap."""
        return self.session == sound.session and self.next == sound.first


class ScoreLog(Observer):
    """Writes what was heard into the folder of [log_scores]."""

    def __init__(self, settings: Settings, model: Description) -> None:
        wanted = settings.log_scores
        self._most_rows, self._soon_rows = (max(1, round(s * model.sample_rate / model.hop)) for s in (BLOCK_S, SOON_S))
        self._thresholds: dict[str, Mapping[str, Threshold]] = {}
        self._open: dict[str, _Open] = {}
        self._queue: queue.Queue[tuple[str, _Open] | None] = queue.Queue(max(WAITING, 4 * len(settings.source)))
        self._abouts = {
            source.name: About(
                node_name(settings),
                source.name,
                f"{model.name} {model.version}",
                model.sha256,
                model.labels,
                model.hop,
                model.sample_rate,
                source.calibration_db,
            )
            for source in settings.source
        }
        self._folder = Folder(scores_folder(settings), round(wanted.max_mb * 1e6), wanted.max_days * 86_400)
        self._thread = threading.Thread(target=self._run, name="scores", daemon=True)
        self._where = f"score log {self._folder.path}"
        self._rows = self._collected = self._slow = self._failed = 0
        self._trouble = ""
        self._failure: UrbandetectError | None = None

    def start(self) -> None:
        self._thread.start()

    def stepped(self, took_s: float, sounds: Sequence[Sound]) -> None:
        for sound in sounds:
            part, thresholds = self._open.get(sound.source), self._thresholds[sound.source]
            if part is None or part.rows >= part.most_rows or part.thresholds is not thresholds or not part.leads_to(sound):
                self._close(sound.source)
                part = _Open(sound.session, sound.first, sound.ends_s, thresholds, self._most_rows)
                self._open[sound.source] = part
            part.scores.append(sound.scores.copy())
            part.mean_squares.append(sound.mean_squares)
            part.rows += len(sound.scores)
            part.next = sound.first + len(sound.samples)

    def event(self, event: dict[str, Any], change: Change) -> None:
        """Its rows have come before it."""
        if part := self._open.get(event["source"]):
            if change.phase == "end":
                part.most_rows = self._soon_rows
            utc = event["end"] or event["start"]
            part.told.append(Told(change.phase, change.label, change.onset, change.offset, round(change.score, 4), utc))

    def use(self, source: str, thresholds: Mapping[str, Threshold]) -> None:
        self._thresholds[source] = thresholds

    def end(self, source: str) -> None:
        self._close(source)

    def facts(self) -> dict[str, Any]:
        """Rows on disk and rows that are missing there."""
        dropped, folder = self._slow + self._failed, self._folder
        said = {"folder": str(folder.path), "mb": round(folder.size / 1e6, 1), "rows": self._rows, "dropped": dropped}
        return {"score_log": said | {"trouble": self._trouble}}

    def stop(self) -> UrbandetectError | None:
        for source in list(self._open):
            self._close(source)
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=STOP_S)
        if self._thread.ident:
            self._thread.join(STOP_S)
        if not (missing := self._collected - self._rows):
            return None
        why = self._failure or TryAgainError(self._where, "the disk is too slow", "set another log_scores.folder")
        return type(why)(why.where, f"{why.what}; {missing} rows were not kept", why.fix)

    def _close(self, source: str) -> None:
        """Hand a part over to the disk."""
        if part := self._open.pop(source, None):
            self._collected += part.rows
            try:
                self._queue.put_nowait((source, part))
            except queue.Full:
                if not self._slow:
                    log.warning("score log: the disk is too slow, rows are left out; `health` counts them")
                self._slow += part.rows

    # What follows runs in the thread of the log.

    def _run(self) -> None:
        log.info("score log: %s", self._folder.path)
        while job := self._queue.get():
            source, part = job
            try:
                levels = np.array([dbfs(each) for each in np.concatenate(part.mean_squares).tolist()])
                packed = pack_numbers(np.concatenate(part.scores), levels)
                told = tuple(part.told)
                made = Part(part.session, part.first, part.ends_s, part.rows, part.thresholds, told, packed)
                self._folder.write(self._abouts[source], block(made))
            except Exception as error:  # noqa: BLE001 - it goes on, whatever it is
                self._failed += part.rows
                self._fail(error)
            else:
                self._rows += part.rows
                if self._trouble:
                    log.info("score log: written again, %d rows are missing", self._failed)
                self._trouble = ""

    def _fail(self, error: Exception) -> None:
        """Note why a part is not written; say it when it is news."""
        self._failure = not_written(self._where, "log_scores.folder", error)
        trouble = getattr(error, "strerror", None) or self._failure.what
        if trouble != self._trouble:
            log.warning("%s; it is tried again, hearing goes on", self._failure)
        self._trouble = trouble


class Folder:
    """Files of several sources that together never take more than max_bytes; the one longest not written to goes first."""

    def __init__(self, path: Path, max_bytes: int, max_age_s: float) -> None:
        self.path, self._max_bytes, self._max_age_s = path, max_bytes, max_age_s
        self.size = 0
        self._look_at_s = 0.0
        self._files: dict[str, Path] = {}

    def write(self, about: About, content: bytes) -> None:
        """Append a block to this source's file, or to a new one each UTC day. Raises OSError, and then nothing of it is there;
        ConfigError for one that is larger than all may be."""
        first = header(about)
        wanted = len(first) + len(content)
        self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
        now = datetime.now(UTC)
        file = self._begun(about.source, len(content), now)
        if not file or self.size + wanted > self._max_bytes or time.monotonic() >= self._look_at_s:
            self._make_room(wanted)
            file = self._begun(about.source, len(content), now)
        if file:
            self._append(file, os.O_APPEND, content)
            return
        file = self.path / f"{about.source}-{now:%Y%m%dT%H%M%S%f}Z{SUFFIX}"
        self._append(file, os.O_CREAT | os.O_EXCL, first + content)
        self._files[about.source] = file

    def _begun(self, source: str, size: int, now: datetime) -> Path | None:
        """The file that so many bytes of this source go on, if there is one."""
        file = self._files.get(source)
        if not (file and file.exists() and file.stat().st_size + size <= self._max_bytes // FILES):
            return None
        return file if file.stem.rpartition("-")[2].startswith(f"{now:%Y%m%d}") else None

    def _append(self, file: Path, how: int, content: bytes) -> None:
        target = os.open(file, os.O_WRONLY | how, 0o640)
        size = os.fstat(target).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(target, left) :]
        except OSError:
            self._look_at_s = 0.0
            os.ftruncate(target, size)
            if not size:
                file.unlink()
            raise
        finally:
            os.close(target)
        self.size += len(content)

    def _make_room(self, wanted: int) -> None:
        """Look through the folder: delete what is too old, and then the oldest until so many bytes fit."""
        if wanted > self._max_bytes:
            what = f"a block of {wanted} bytes is more than log_scores.max_mb"
            raise ConfigError(f"score log {self.path}", what, "set a larger one")
        found = []
        for file in self.path.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another daemon of this folder was quicker
                stat = file.stat()
                found.append((stat.st_mtime_ns, file, stat.st_size))
        self.size = sum(size for *_, size in found)
        self._look_at_s = time.monotonic() + LOOK_S
        for written_ns, file, size in sorted(found):
            dated = written_ns / 1e9 > CLOCK_IS_SET_S  # before that nobody knows how old it is
            if self.size + wanted > self._max_bytes or (dated and time.time() - written_ns / 1e9 > self._max_age_s):
                file.unlink(missing_ok=True)
                self.size -= size
