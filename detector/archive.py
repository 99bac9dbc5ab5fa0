"""Many recordings: which there are, and what is in each, by processes that each hold the model.

A recording is one task and one outcome. Its process may die (out of memory, a decoder's crash): the recording is given to another
one, and after the second death it has an outcome that says so. Outcomes come as they are ready; who wants them in order sorts them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from detector.audio.file import SUFFIXES
from detector.errors import ConfigError, InputError, TryAgainError, UrbandetectError
from detector.model import Model, Threshold
from detector.scan import Found, scan

BIRTHS = 3
"""So many processes in a row may die before they have the model; then it is this computer."""
DEATHS = 2
"""So many processes may die of one recording; then it is the recording."""
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What is wrong with a name, and not with a disk or with permissions."""
TELL_S = 0.5
"""How often a long recording says how far it is, which is also how soon a process sees that it works for nobody."""


@dataclass(frozen=True)
class Recording:
    """A file by the name the user gave it, or a URL; size in bytes, a word for its last change: -1 and "" if it is not there."""

    name: str
    size: int = -1
    changed: str = ""


@dataclass(frozen=True)
class Outcome:
    """What is in one recording; seconds of sound; error: why it could not be read (found: what is before it breaks off), and
    `again`: another time it may."""

    name: str
    found: tuple[Found, ...] = ()
    seconds: float = 0.0
    error: str = ""
    again: bool = False


@dataclass(frozen=True)
class Job:
    """What a process needs to do any of them: the model by its file and sha256, and the thresholds."""

    model: Path
    sha256: str
    provider: str
    thresholds: Mapping[str, Threshold]

    def load(self) -> Model:
        """The model. Raises ConfigError when its file is not what it was."""
        model = Model(self.model, self.provider)
        if model.description.sha256 != self.sha256:
            raise ConfigError(str(self.model), "has changed since the scan began", "start it again")
        return model


def recordings(paths: Sequence[str]) -> tuple[list[Recording], int]:
    """The files named, and all recordings in the folders named, each once, a folder's sorted by name; how many others those held.

    A path that is not there is a Recording too: it fails when its turn comes. Raises InputError when there is nothing at all, or an
    empty name.
    """
    if "" in paths:
        raise InputError("PATHS", "one of them is empty", "name a file, a folder or a URL")
    found: dict[str, Recording] = {}
    others = 0
    for path in paths:
        for each, named in _elsewhere(path) if "://" in path else _local(path):
            if named or (Path(each.name).suffix.lower() in SUFFIXES and not Path(each.name).name.startswith(".")):
                found.setdefault(each.name, each)
            else:
                others += 1
    if not found:
        fix = f"a recording in a folder ends in {', '.join(sorted(SUFFIXES))}"
        raise InputError(", ".join(paths[:3]), "holds no recording", fix)
    return list(found.values()), others


def _elsewhere(url: str) -> Iterator[tuple[Recording, bool]]:
    from detector.object_store import listing

    return listing(url)


def _local(path: str) -> Iterator[tuple[Recording, bool]]:
    """What is there, and whether it was named itself. A folder that cannot be read is a Recording that cannot."""
    if not os.path.isdir(path):  # noqa: PTH112 - a Path's raises where the folder may not be read
        yield _look(str(Path(path))), True
        return
    closed: list[str] = []
    for folder, inner, names in os.walk(path, onerror=lambda error: closed.append(error.filename)):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            yield _look(str(Path(folder, name))), False
    for folder in closed:
        yield Recording(str(Path(folder))), True


def _look(name: str) -> Recording:
    try:
        facts = Path(name).stat()
    except (OSError, ValueError):
        return Recording(name)
    return Recording(name, facts.st_size, str(facts.st_mtime_ns))


def examine(
    name: str,
    model: Model,
    thresholds: Mapping[str, Threshold],
    heard: Callable[[float], None],
    tell: Callable[[Found], None] | None = None,
) -> Outcome:
    """Scan one recording. heard: as for `scan`; tell: takes each event at once, instead of the outcome.

    Never raises for what the recording, its disk or the memory is to blame for.
    """
    seconds = 0.0
    found: list[Found] = []

    def count(so_far: float) -> None:
        nonlocal seconds
        seconds = so_far
        heard(so_far)

    try:
        with _at_hand(name) as path:
            try:
                for event in scan(path, model, thresholds, name, count):
                    (tell or found.append)(event)
            except InputError:
                _read_whole(name, path)
                raise
    except UrbandetectError as error:
        return Outcome(name, tuple(found), seconds, str(error), isinstance(error, TryAgainError))
    except MemoryError:
        full = TryAgainError(name, "needs more memory than there is", "try fewer --jobs")
        return Outcome(name, tuple(found), seconds, str(full), again=True)
    return Outcome(name, tuple(found), seconds)


def _read_whole(name: str, path: Path) -> None:
    """Raise TryAgainError when not the content of this file is to blame, but its disk or its permissions."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
        elif stat.S_ISREG(mode):
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
    except OSError as error:
        if error.errno not in NO_FILE:
            fix = "check its permissions and its disk; the same command tries it again"
            raise TryAgainError(name, f"cannot be read ({error.strerror})", fix) from error


@contextlib.contextmanager
def _at_hand(name: str) -> Iterator[Path]:
    """A path that libsndfile can read. What is elsewhere is copied first, whole: a line that breaks must not look like an end."""
    if "://" not in name:
        yield Path(name)
        return
    from detector.object_store import fetch

    with tempfile.NamedTemporaryFile(prefix="urbandetect-", suffix=Path(name).suffix) as copy:
        fetch(name, copy.name)
        yield Path(copy.name)


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    line: Connection
    name: str = ""
    ready: bool = False


def by_processes(todo: Sequence[str], job: Job, jobs: int, heard: Callable[[str, float], None]) -> Iterator[Outcome]:
    """An outcome for each of `todo`, as they are ready. heard: told now and then how many seconds of which one are heard.

    Raises TryAgainError when processes die before they can begin. Whoever stops asking ends the processes.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of onnxruntime's threads
    waiting, deaths, unborn = deque(todo), dict[str, int](), 0

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, job), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    workers = [start() for _ in range(max(1, min(jobs, len(todo))))]
    try:
        while waiting or any(worker.name for worker in workers):
            lines = {worker.line: worker for worker in workers}
            for line in wait(list(lines)):
                worker = lines[line]  # type: ignore[index]
                try:
                    said = worker.line.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    workers.remove(worker)
                    unborn = 0 if worker.ready else unborn + 1
                    if unborn == BIRTHS:
                        what = f"processes cannot begin (exit code {worker.process.exitcode})"
                        raise TryAgainError("scan", what, "is there memory? try --jobs 1") from None
                    if worker.name:
                        outcome = died(worker.name, deaths, f"exit code {worker.process.exitcode}")
                        if outcome:
                            yield outcome
                        else:
                            waiting.appendleft(worker.name)
                    workers.append(start())
                    continue
                if isinstance(said, Outcome):
                    worker.name = ""
                    yield said
                elif isinstance(said, float):
                    heard(worker.name, said)
                worker.ready = True
                if not worker.name and waiting:
                    worker.name = waiting.popleft()
                    with contextlib.suppress(OSError):  # it has died: its line says so next
                        worker.line.send(worker.name)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.line.close()


def died(name: str, deaths: dict[str, int], how: str) -> Outcome | None:
    """Count a death over this recording: its outcome if that was one too many."""
    deaths[name] = deaths.get(name, 0) + 1
    if deaths[name] < DEATHS:
        return None
    error = InputError(name, f"ended the process that read it, {DEATHS} times ({how})", "is it damaged, or is there no memory?")
    return Outcome(name, error=str(error))


def _work(line: Connection, job: Job) -> None:
    """A process: say that it is ready, then an outcome for every name, until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it
    logging.disable(logging.WARNING)  # what there is to say of the model was said there
    try:
        model = job.load()
        line.send(None)
        while True:
            name, told_s = line.recv(), time.monotonic()

            def heard(seconds: float) -> None:
                nonlocal told_s
                if time.monotonic() - told_s >= TELL_S:
                    told_s = time.monotonic()
                    line.send(seconds)

            line.send(examine(name, model, job.thresholds, heard))
    except (EOFError, ConnectionError):
        return
    except Exception:  # noqa: BLE001 - its death is counted there, and a traceback helps nobody
        os._exit(70)
