"""What of an archive is done: a SQLite file beside the output, one transaction a recording.

SQLite and not lines of JSON, because a recording and its events are there together or not at all without any code of ours, because
"is this one done?" is an index and not a file read anew, and because a second scan into the same output is refused by a lock.
A `kill -9` loses the recordings under way and nothing else (write-ahead log, `synchronous = NORMAL`); a power cut perhaps the last
done ones, which are then done again. The output is written from here when all is done.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from detector.archive import Outcome, Recording
from detector.errors import ConfigError, InputError, TryAgainError
from detector.scan import Found

SCHEMA = """
CREATE TABLE IF NOT EXISTS made_with (what TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS recording (
    id INTEGER PRIMARY KEY, name BLOB UNIQUE NOT NULL, size INTEGER NOT NULL, changed TEXT NOT NULL,
    seconds REAL NOT NULL, error TEXT
);
CREATE TABLE IF NOT EXISTS event (
    recording INTEGER NOT NULL, label TEXT NOT NULL, onset_s REAL NOT NULL, offset_s REAL NOT NULL, score REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS event_of_recording ON event (recording);
"""


class Ledger:
    """The ledger in `path`, made when it is not there, held by this process alone.

    made_with: what decides what is found, by what to call a difference ("another model"). Raises ConfigError when it was made with
    something else, TryAgainError when another scan has it, InputError when it cannot be made.
    """

    def __init__(self, path: Path, made_with: Mapping[str, object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            for line in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
                self._db.execute(f"PRAGMA {line}")
            self._db.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            for what, value in made_with.items():
                text = json.dumps(value, sort_keys=True)
                self._db.execute("INSERT OR IGNORE INTO made_with VALUES (?, ?)", (what, text))
                ((before,),) = self._db.execute("SELECT value FROM made_with WHERE what = ?", (what,))
                if before != text:
                    self._db.close()  # else its log stays
                    fix = "give another --out, or remove the ledger to begin anew"
                    raise ConfigError(str(path), f"was made with {what}, and the two do not mix", fix)
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise TryAgainError(str(path), "is in use by another scan", "wait for its end") from error
            if isinstance(error, sqlite3.OperationalError):
                raise InputError(str(path), f"cannot be written ({error})", "is the folder yours?") from error
            raise ConfigError(str(path), f"is no ledger of a scan ({error})", "move it away, or give another --out") from error
        except OSError as error:
            raise InputError(str(path), f"cannot be written ({error.strerror})", "is the folder yours?") from error

    def done(self, recording: Recording) -> Outcome | None:
        """Its outcome if it is done and has not changed since, with its events only where it broke off."""
        row = self._db.execute(
            "SELECT seconds, error FROM recording WHERE name = ? AND size = ? AND changed = ?",
            (os.fsencode(recording.name), recording.size, recording.changed),
        ).fetchone()
        if row is None:
            return None
        return Outcome(recording.name, tuple(self.events(recording.name)) if row[1] else (), row[0], row[1] or "")

    def record(self, recording: Recording, outcome: Outcome) -> None:
        """This is what is in it: all of it or, if we are killed, nothing. Raises TryAgainError when the disk does not take it."""
        name = os.fsencode(recording.name)
        try:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM event WHERE recording = (SELECT id FROM recording WHERE name = ?)", (name,))
            self._db.execute("DELETE FROM recording WHERE name = ?", (name,))
            row = (name, recording.size, recording.changed, outcome.seconds, outcome.error or None)
            number = self._db.execute(
                "INSERT INTO recording (name, size, changed, seconds, error) VALUES (?, ?, ?, ?, ?)", row
            ).lastrowid
            events = [(number, each.label, each.onset_s, each.offset_s, each.score) for each in outcome.found]
            self._db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?)", events)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            fix = "is the disk full? the same command goes on"
            raise TryAgainError("the scan's ledger", f"takes nothing more ({error})", fix) from error

    def events(self, name: str) -> Iterator[Found]:
        """Those of one recording in the order in which they end."""
        rows = self._db.execute(
            "SELECT label, onset_s, offset_s, score FROM event WHERE recording = (SELECT id FROM recording WHERE name = ?) "
            "ORDER BY rowid",
            (os.fsencode(name),),
        )
        for label, onset_s, offset_s, score in rows:
            yield Found(name, label, onset_s, offset_s, score)

    def names(self) -> Iterator[str]:
        """Of all recordings it has, also such as are no longer there."""
        for (name,) in self._db.execute("SELECT name FROM recording"):
            yield os.fsdecode(name)

    def close(self) -> None:
        self._db.close()
