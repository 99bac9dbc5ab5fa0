"""Which microphone hears a clap: the level of all of them, now."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from detector.audio.devices import Device, list_devices
from detector.audio.level import SILENCE_DBFS, dbfs
from detector.audio.microphone import Microphone
from detector.audio.source import SourceLost
from detector.errors import UrbandetectError

REFRESH_S = 0.1
LINES = 10
"""Where no terminal shows them, rows are told at every so many refreshes."""
HOLD_S = 2.0
"""How long the loudest of late stays marked: as long as it takes to look up from one's hands."""
FLOOR_DBFS, WIDTH, NAME_WIDTH = -60.0, 24, 34
"""Where the bar begins; the characters of it and of a name, so that a row has 79."""


@dataclass
class Row:
    """One device. dbfs: its level since the last refresh, None while nothing came; held_dbfs: the highest of late; trouble: why it
    is not heard, empty when it is."""

    device: Device
    microphone: Microphone | None = None
    trouble: str = ""
    dbfs: float | None = None
    held_dbfs: float = SILENCE_DBFS
    _held_at_s: float = field(default=0.0, repr=False)

    def refresh(self, now_s: float) -> None:
        """Take what came since the last time."""
        square_sum, count = 0.0, 0
        try:
            while self.microphone and (block := self.microphone.read()):
                square_sum, count = square_sum + float(block.samples @ block.samples), count + len(block.samples)
        except SourceLost as lost:
            self.microphone, self.trouble = None, f"{lost}"
        self.dbfs = dbfs(square_sum / count) if count else self.dbfs if self.microphone else None
        if self.dbfs is not None and (self.dbfs >= self.held_dbfs or now_s - self._held_at_s > HOLD_S):
            self.held_dbfs, self._held_at_s = self.dbfs, now_s


def meter(seconds: float | None) -> Iterator[list[Row]]:
    """The rows anew every REFRESH_S, for so long or for ever. Raises what `list_devices` raises.

    PortAudio opens several devices at once; a card that is open under one name mostly cannot be opened under another, so cards come
    before what may stand for one of them.
    """
    rows = [Row(device) for device in list_devices()]
    for row in sorted(rows, key=lambda row: row.device.place is None):
        try:
            row.microphone = Microphone(str(row.device.index), threading.Event())
        except UrbandetectError as error:
            row.trouble = error.what
    began_s = time.monotonic()
    for number in itertools.count(1) if seconds is None else range(1, round(seconds / REFRESH_S) + 1):
        due_s = began_s + number * REFRESH_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        for row in rows:
            row.refresh(due_s)
        yield rows


def bar(row: Row) -> str:
    """`[#####    |   ]  -23.1 dBFS`, or why there is none: the mark is the loudest of late."""
    if row.trouble:
        return row.trouble
    if row.dbfs is None:
        return "no sound yet"
    level, held = (round(WIDTH * min(1.0, max(0.0, 1 - value / FLOOR_DBFS))) for value in (row.dbfs, row.held_dbfs))
    cells = ["#"] * level + [" "] * (WIDTH - level)
    if held > level:
        cells[held - 1] = "|"
    return f"[{''.join(cells)}] {row.dbfs:6.1f} dBFS"


def show(seconds: float | None, as_json: bool) -> None:
    """On a terminal in place, elsewhere a line per device and second; as JSON a line per refresh."""
    in_place, shown = sys.stdout.isatty() and not as_json, 0
    for number, rows in enumerate(meter(seconds)):
        if as_json:
            click.echo(json.dumps([_facts(row) for row in rows]))
        elif in_place:
            click.echo((f"\x1b[{shown}A" if shown else "") + "\n".join(f"\r\x1b[K{_line(row)}" for row in rows))
            shown = len(rows)
        elif number % LINES == 0:
            click.echo("\n".join(map(_line, rows)))
        sys.stdout.flush()


def _line(row: Row) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a line that wraps cannot be written over
    return f"{row.device.index:3d}  {row.device.name[:NAME_WIDTH]:{NAME_WIDTH}}  {bar(row)}"[:width]


def _facts(row: Row) -> dict[str, object]:
    level = None if row.dbfs is None else round(row.dbfs, 1)
    return {"index": row.device.index, "name": row.device.name, "dbfs": level, "trouble": row.trouble}
