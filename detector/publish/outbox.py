"""Messages that must arrive, on disk until the broker has them: SQLite, each one written through before anything is sent.

A message leaves only by `done`, or, counted, when it is too old or there are too many. What the disk does not take waits in memory.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from detector.errors import ConfigError, TryAgainError, not_written

log = logging.getLogger(__name__)

IN_MEMORY = 10_000
"""Messages kept when the disk takes none: hours of a busy street, a few megabytes."""
RETRY_S = 10.0
"""A disk that failed is tried again after so long; until then nothing waits for it."""
SAY_S = 60.0
"""An outage lasts longer than anyone wants to read of it: one line a minute."""
ROW_BYTES = 64
"""What SQLite adds to a message, about."""
CLOCK_IS_SET_S = 1_700_000_000.0
"""November 2023. A computer that has not set its clock yet does not know how old a message is: it is kept."""
CLOCK_STEP_S = 60.0
"""A clock that is set by more, as after a boot without a network, makes no message older: it was wrong before."""
TABLES = {"message", "dropped"}
PAGE_BYTES = 4096
MAGIC = b"SQLite format 3\0"
"""How every outbox begins, but for an empty one."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, queued_s REAL NOT NULL, topic TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dropped (count INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Message:
    """One message to a topic. id: rises in the order of `put`; queued_s: Unix time."""

    id: int
    queued_s: float
    topic: str
    payload: str

    @property
    def size_bytes(self) -> int:
        return len(self.topic.encode()) + len(self.payload.encode()) + ROW_BYTES


@dataclass(frozen=True)
class Stock:
    """How the outbox is: messages that wait and their size; the age of the oldest; how many were ever dropped; why the disk takes
    none, empty when it does."""

    messages: int
    size_bytes: int
    oldest_s: float
    dropped: int
    trouble: str


class Outbox:
    """A queue that survives the process. Any thread may call it."""

    def __init__(self, path: Path, max_bytes: int, max_age_s: float) -> None:
        """Open or make it. A file that is damaged is set aside and said; a disk that takes nothing is said, and memory serves.

        Raises ConfigError for a file of another kind, which is left as it is, TryAgainError when another process has it open.
        """
        if is_foreign(path):
            raise ConfigError(f"outbox {path}", "is a file of another kind", "set another outbox.path, or move it away")
        self._path, self._max_bytes, self._max_age_s = path, max_bytes, max_age_s
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._memory: dict[int, Message] = {}  # what the disk has not got yet
        self._taken: dict[int, Message] = {}  # what the disk does not know to be done
        self._last_id = self._last_taken = self._rows = self._bytes = 0
        self._dropped = self._uncounted = 0
        self._clock_s, self._step_s = time.time() - time.monotonic(), 0.0
        self._failure = ""  # the trouble, where, and what to do
        self._busy, self._trouble, self._retry_at_s, self._said_s = False, "", 0.0, float("inf")
        self._flush()
        if self._busy:
            raise TryAgainError(
                f"outbox {path}", "another urbandetect has it open", "stop that one, or give this one its own outbox.path"
            )
        self._said_s = float("-inf")
        if not self._db:
            self._last_id = time.time_ns() // 1000  # above what the disk may hold
            self._say_trouble()

    def put(self, topic: str, payload: str) -> None:
        """Add a message. When this returns it is on the disk; or in memory, and the disk's trouble has been said."""
        with self._lock:
            self._follow_clock()
            self._last_id += 1
            self._memory[self._last_id] = Message(self._last_id, time.time(), topic, payload)
            self._flush()
            if len(self._memory) > IN_MEMORY:
                del self._memory[next(iter(self._memory))]
                self._dropped, self._uncounted = self._dropped + 1, self._uncounted + 1

    def after(self, last_id: int, most: int) -> list[Message]:
        """The oldest messages with an id above `last_id`, in order."""
        with self._lock:
            rows: list[Message] = []
            if self._db:
                query = "SELECT id, queued_s, topic, payload FROM message WHERE id > ? ORDER BY id LIMIT ?"
                taken = sum(id_ > last_id for id_ in self._taken) if last_id < self._last_taken else 0
                try:
                    rows = [Message(*row) for row in self._db.execute(query, (last_id, most + taken))]
                except sqlite3.Error as error:
                    self._failed(error)
                    return []
            waiting = [row for row in rows if row.id not in self._taken]
            waiting += islice((message for message in self._memory.values() if message.id > last_id), most)
            return waiting[:most]

    def done(self, messages: Iterable[Message]) -> None:
        """The broker has these."""
        with self._lock:
            for message in messages:
                if self._memory.pop(message.id, None) is None:
                    self._taken[message.id] = message
                    self._last_taken = max(self._last_taken, message.id)
            self._flush()

    def left_s(self, message: Message) -> float:
        """How long a message is still worth delivering."""
        age_s = time.time() - message.queued_s if message.queued_s > CLOCK_IS_SET_S else 0.0
        return self._max_age_s - max(0.0, age_s)

    def stock(self) -> Stock:
        """How it is now, without what has become too old."""
        with self._lock:
            self._flush()
            oldest = next(iter(self._memory.values()), None)
            try:
                oldest = self._oldest() or oldest
            except sqlite3.Error as error:
                self._failed(error)
            return Stock(
                self._rows + len(self._memory) - len(self._taken),
                self._bytes + sum(m.size_bytes for m in self._memory.values()) - sum(m.size_bytes for m in self._taken.values()),
                max(0.0, time.time() - oldest.queued_s) if oldest else 0.0,
                self._dropped,
                self._trouble,
            )

    def close(self) -> int:
        """Let go of the file; what waits stays in it. How many messages are on no disk, and lost. Safe to call twice."""
        with self._lock:
            self._retry_at_s = 0.0
            if self._db or self._memory:
                self._flush()
            if self._db:
                self._db.close()
            self._db = None
            return len(self._memory)

    def _flush(self) -> None:
        """Bring the disk up to date, unless it has just failed."""
        self._follow_clock()
        if self._trouble and time.monotonic() < self._retry_at_s:
            return
        try:
            self._write()
        except (sqlite3.Error, OSError) as error:
            if self._failed(error):  # set aside: a new file may do
                self._flush()
            return
        if self._trouble:
            log.warning("outbox %s: the disk takes messages again", self._path)
            self._trouble = ""

    def _follow_clock(self) -> None:
        """When the clock has been set, so are the times of what waits."""
        clock_s = time.time() - time.monotonic()
        step_s = clock_s - self._clock_s
        if abs(step_s) > CLOCK_STEP_S:
            self._clock_s, self._step_s = clock_s, self._step_s + step_s
            self._memory = {id_: replace(message, queued_s=message.queued_s + step_s) for id_, message in self._memory.items()}

    def _write(self) -> None:
        """All that memory knows better, in one transaction."""
        if not self._db:
            self._open()
        assert self._db
        rows, size, dropped = self._rows, self._bytes, 0
        with self._db as db:  # commits, or rolls back
            if self._step_s:
                db.execute("UPDATE message SET queued_s = queued_s + ?", (self._step_s,))
            for message in self._taken.values():
                if db.execute("DELETE FROM message WHERE id = ?", (message.id,)).rowcount:
                    rows, size = rows - 1, size - message.size_bytes
            for message in self._memory.values():
                db.execute(
                    "INSERT INTO message VALUES (?, ?, ?, ?)", (message.id, message.queued_s, message.topic, message.payload)
                )
                rows, size = rows + 1, size + message.size_bytes
            while (oldest := self._oldest()) and (size > self._max_bytes or self._too_old(oldest)):
                db.execute("DELETE FROM message WHERE id = ?", (oldest.id,))
                rows, size, dropped = rows - 1, size - oldest.size_bytes, dropped + 1
            if dropped + self._uncounted:
                db.execute("UPDATE dropped SET count = count + ?", (dropped + self._uncounted,))
        self._rows, self._bytes, self._dropped = rows, size, self._dropped + dropped
        self._memory, self._taken, self._uncounted, self._step_s = {}, {}, 0, 0.0
        if dropped:
            self._say(f"outbox {self._path}: too full or too old: the oldest messages go, {self._dropped} so far")

    def _oldest(self) -> Message | None:
        if not self._db:
            return None
        row = self._db.execute("SELECT id, queued_s, topic, payload FROM message ORDER BY id LIMIT 1").fetchone()
        return Message(*row) if row else None

    def _too_old(self, message: Message) -> bool:
        return self.left_s(message) < 0

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # this file is ours alone, and needs no shared memory beside it
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("its pages are damaged")
            db.executescript(SCHEMA)
            with db:
                db.execute("INSERT INTO dropped SELECT 0 WHERE NOT EXISTS (SELECT * FROM dropped)")
            size = "length(CAST(topic AS BLOB)) + length(CAST(payload AS BLOB)) + ?"
            self._rows, self._bytes, last_id = db.execute(
                f"SELECT count(*), coalesce(sum({size}), 0), coalesce(max(id), 0) FROM message",
                (ROW_BYTES,),
            ).fetchone()
            self._dropped = db.execute("SELECT count FROM dropped").fetchone()[0] + self._uncounted
        except sqlite3.Error:
            db.close()
            raise
        self._last_id = max(self._last_id, last_id)
        self._db = db

    def _failed(self, error: Exception) -> bool:
        """Note what the disk said; True when the file was damaged and is set aside."""
        now_s = time.monotonic()
        again, self._retry_at_s = now_s < self._retry_at_s, now_s + RETRY_S
        code = getattr(error, "sqlite_errorcode", None)
        self._busy = code == sqlite3.SQLITE_BUSY
        if code != sqlite3.SQLITE_FULL and self._db:  # only a full disk can still be read
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if not self._db and (code or 0) & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            error = self._refused() or error
        if type(error) is sqlite3.DatabaseError and not again:  # a file that is none of SQLite's, or damaged
            names = (self._path.with_name(f"{self._path.name}.damaged{number or ''}") for number in count())
            aside = next(name for name in names if not name.exists())
            try:
                for ending in ("", "-wal"):
                    with contextlib.suppress(FileNotFoundError):
                        self._path.with_name(self._path.name + ending).replace(f"{aside}{ending}")
            except OSError as failure:
                error = failure
            else:
                self._uncounted = self._dropped + self._rows
                self._rows, self._bytes, self._taken = 0, 0, {}
                log.error("outbox %s: damaged (%s): set aside as %s, what waited in it is not sent", self._path, error, aside.name)
                return True
        self._trouble = " ".join(f"{getattr(error, 'strerror', None) or error}".split())
        where = f"outbox {self._path}"
        self._failure = f"{where}: the disk takes nothing ({self._trouble})"
        if isinstance(error, OSError):
            self._failure = f"{not_written(where, 'outbox.path', error)}"
        self._say_trouble()
        return False

    def _refused(self) -> OSError | None:
        """Why the system does not let us write: SQLite says no more than that it cannot."""
        try:
            for ending in ("", "-wal"):
                self._path.with_name(self._path.name + ending).open("ab").close()
        except OSError as error:
            return error
        return None

    def _say_trouble(self) -> None:
        self._say(f"{self._failure}; {len(self._memory)} messages wait in memory")

    def _say(self, text: str) -> None:
        if time.monotonic() - self._said_s >= SAY_S:
            self._said_s = time.monotonic()
            log.warning("%s", text)


def is_foreign(path: Path) -> bool:
    """Whether there is a file that never was an outbox. One of whole pages may have been, whatever it begins with now."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return path.stat().st_size % PAGE_BYTES != 0
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as db:
            return not {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} <= TABLES
    except (OSError, sqlite3.Error):
        return False
