"""Score logs: what every row scored, in files that are whole up to their last block however their writer ended.

A file is one line of JSON that says what its numbers are, and blocks. A block is MAGIC, two lengths and a CRC-32, then two zlib
streams of those lengths: JSON, and the numbers. Each block says by itself of which session and sample it is, so nothing is ever
read across a gap, and a damaged one costs its own rows.
"""

from __future__ import annotations

import json
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.source import Floats
from detector.errors import InputError
from detector.model import Threshold

log = logging.getLogger(__name__)

SUFFIX = ".scores"
SCHEMA = 1
MAGIC = b"\x93row"
HEAD = struct.Struct("<4sIII")
"""MAGIC, bytes of each stream, CRC-32 of both."""
STEPS = 64
"""To a logit. Thresholds lie anywhere up to 0.999, so logits are rounded: 0.5 is right to 0.002, 0.999 to 0.00001."""
MOST_STEPS = 16 * STEPS
"""Stands for all scores beyond, as 0 and as 1: those are nearer to it than 0.0000002."""
MOST_BYTES = 1 << 26
"""Of one block, unpacked: a hundred times the longest of a thousand labels."""


@dataclass(frozen=True)
class About:
    """What all of a file is of. model: the file that heard, by its sha256; hop, sample_rate: of a row, in samples."""

    node: str
    source: str
    model: str
    sha256: str
    labels: tuple[str, ...]
    hop: int
    sample_rate: int
    calibration_db: float | None

    @property
    def row_s(self) -> float:
        return self.hop / self.sample_rate


@dataclass(frozen=True)
class Told:
    """A message about an event: phase `start`, `update` or `end`; onset, offset: samples of the session; score: its peak so far;
    utc: when it ended, or began where it lasts, as the message says it."""

    phase: str
    label: str
    onset: int
    offset: int
    score: float
    utc: str


@dataclass(frozen=True)
class Part:
    """Rows without a gap, under the same thresholds.

    first: sample of the session where they begin, at the model's rate; ends_s: UTC of the first row's end, in seconds since 1970;
    packed: their numbers, see `numbers`; told: what was told after these rows and before the next part's.
    """

    session: str
    first: int
    ends_s: float
    rows: int
    thresholds: Mapping[str, Threshold]
    told: tuple[Told, ...]
    packed: bytes

    def numbers(self, labels: int) -> tuple[Floats, Floats]:
        """Scores [rows, labels] and the level of each row in dBFS [rows]. Raises InputError where they are not so many."""
        try:
            table = _unpack(_inflate(self.packed), self.rows, labels + 1)
        except (ValueError, zlib.error) as error:
            raise InputError(f"session {self.session}", "its score log holds other numbers than it says", "delete it") from error
        return dequantise(table[:, :-1]), (table[:, -1] / 10).astype(np.float32)


def quantise(scores: Floats) -> NDArray[np.int16]:
    """Logits in STEPS, within MOST_STEPS."""
    wide = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(wide) - np.log1p(-wide)
    steps: NDArray[np.int16] = np.round(np.clip(logits * STEPS, -MOST_STEPS, MOST_STEPS)).astype(np.int16)
    return steps


def dequantise(steps: NDArray[np.int16]) -> Floats:
    """The scores again."""
    scores = 1 / (1 + np.exp(-steps.astype(np.float64) / STEPS))
    return np.where(np.abs(steps) < MOST_STEPS, scores, steps > 0).astype(np.float32)


def header(about: About) -> bytes:
    """The first line of a file."""
    return json.dumps({"urbandetect": "scores", "schema": SCHEMA} | asdict(about), ensure_ascii=False).encode() + b"\n"


def pack_numbers(scores: Floats, dbfs: NDArray[np.float64]) -> bytes:
    """For `Part.packed`: each column as differences from row to row, their high bytes and then their low ones, deflated."""
    table = np.column_stack([quantise(scores), np.round(dbfs * 10).astype(np.int16)])
    steps = np.diff(table, axis=0, prepend=np.zeros((1, table.shape[1]), np.int16)).T
    unsigned = ((steps << 1) ^ (steps >> 15)).astype(">u2")
    return zlib.compress(np.frombuffer(unsigned.tobytes(), np.uint8).reshape(-1, 2).T.tobytes())


def block(part: Part) -> bytes:
    """A part as it is written."""
    facts = {
        "session": part.session,
        "first": part.first,
        "ends_s": round(part.ends_s, 3),
        "rows": part.rows,
        "thresholds": {label: astuple(threshold) for label, threshold in part.thresholds.items()},
        "told": [astuple(told) for told in part.told],
    }
    said = zlib.compress(json.dumps(facts, separators=(",", ":")).encode())
    return HEAD.pack(MAGIC, len(said), len(part.packed), zlib.crc32(said + part.packed)) + said + part.packed


def read(path: Path) -> tuple[About, list[Part]]:
    """A whole file; what is torn or damaged in it is skipped, and said. Raises InputError for one that is no score log."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "is it there, and may this user read it?") from error
    about, at = _about(content, path), content.find(b"\n") + 1
    parts, skipped = [], 0
    while at < len(content):
        if part := _part(content, at):
            parts.append(part)
            at += HEAD.size + sum(HEAD.unpack_from(content, at)[1:3])
        else:
            begin, at = at, content.find(MAGIC, at + 1)
            at = len(content) if at < 0 else at
            skipped += at - begin
    if skipped:
        log.warning("%s: %d bytes are torn or damaged, their rows are left out", path, skipped)
    return about, parts


def logs(paths: Iterable[Path]) -> list[Path]:
    """The score logs among these files and in these folders, of each source in the order in which they were begun."""
    found = {each for path in paths for each in (path.glob(f"*{SUFFIX}") if _is_folder(path) else [path])}
    return sorted(each for each in found if each.suffix == SUFFIX)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # of a folder above: who reads it says so
        return False


def stretches(parts: Iterable[tuple[About, Part]]) -> Iterator[list[tuple[About, Part]]]:
    """Parts that follow one another without a gap, in a list each."""
    stretch: list[tuple[About, Part]] = []
    for about, part in parts:
        if stretch:
            last_about, last = stretch[-1]
            goes_on = part.session == last.session and part.first == last.first + last.rows * about.hop and about == last_about
            if not goes_on:
                yield stretch
                stretch = []
        stretch.append((about, part))
    if stretch:
        yield stretch


def _about(content: bytes, path: Path) -> About:
    try:
        said: dict[str, Any] = json.loads(content[: content.find(b"\n") + 1])
        if said.pop("urbandetect") != "scores" or said.pop("schema") != SCHEMA:
            raise ValueError
        said["labels"] = tuple(map(str, said["labels"]))
        about = About(**said)
        if not (about.labels and about.hop > 0 and about.sample_rate > 0):
            raise ValueError
        return about
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fix = f"score logs end in {SUFFIX} and are written by `urbandetect run` with [log_scores]"
        raise InputError(str(path), "is no score log of this version", fix) from error


def _part(content: bytes, at: int) -> Part | None:
    """The part at this place, None where there is no whole one."""
    try:
        magic, said_bytes, packed_bytes, checksum = HEAD.unpack_from(content, at)
    except struct.error:
        return None
    begin = at + HEAD.size
    streams = content[begin : begin + said_bytes + packed_bytes]
    if magic != MAGIC or len(streams) < said_bytes + packed_bytes or zlib.crc32(streams) != checksum:
        return None
    try:
        said = json.loads(_inflate(streams[:said_bytes]))
        if not all(type(said[key]) is int for key in ("first", "rows")):
            return None
        thresholds = {label: Threshold(*levels) for label, levels in said.pop("thresholds").items()}
        told = tuple(Told(*each) for each in said.pop("told"))
        return Part(**said, thresholds=thresholds, told=told, packed=streams[said_bytes:])
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error):  # whole, and yet not ours
        return None


def _inflate(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, MOST_BYTES)


def _unpack(raw: bytes, rows: int, columns: int) -> NDArray[np.int16]:
    """[rows, columns] of what `pack_numbers` deflated."""
    unsigned = np.frombuffer(raw, np.uint8).reshape(2, -1).T.copy().view(">u2").reshape(columns, rows).astype(np.int32)
    return np.cumsum((unsigned >> 1) ^ -(unsigned & 1), axis=1).T.astype(np.int16)
