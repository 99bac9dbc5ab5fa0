"""Files and standard input as a Source: replayed at real time, or as fast as they are read."""

from __future__ import annotations

import io
import math
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from detector.audio.devices import silence
from detector.audio.source import LONGEST_BLOCK_S, Block, Floats
from detector.errors import InputError

KINDS = ("wav", "wave", "bwf", "w64", "rf64", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "snd", "caf")
SUFFIXES = frozenset(f".{kind}" for kind in KINDS)
"""What a folder's recordings are told by; a file that is named itself may be called anything."""
LIVE_BLOCK_S = 0.05
"""As a microphone gives it: half of the time between two rows of scores, so that none waits long for its last samples."""
POLL_S = 0.01
"""How often it is looked whether a pipe has more, once it may have a hop: looking is cheap, and who fills it says nothing."""
PIPE_BYTES = 1 << 16
"""What a pipe holds; who fills it has to wait then."""
ENDLESS = 0x7FF00000
UNKNOWN, BAD_SEEK = (1 << 63) - 1, 39
"""How many samples there are of FLAC that was written to a pipe, and what libsndfile says at their end."""


class FileSource:
    """A file libsndfile reads (wav, flac, ogg, mp3, aiff ...), its channels averaged.

    speed: times real time; 0 is as fast as it goes. Raises InputError for a file that is missing, empty or not audio.
    """

    def __init__(self, path: Path | BinaryIO, speed: float = 0.0, name: str = "") -> None:
        where = name or str(path)
        if isinstance(path, Path):
            must_be_readable(path, where)
        silence()
        try:
            self._file = soundfile.SoundFile(os.fsencode(path) if isinstance(path, Path) else path)
        except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a name that ends in .raw
            raise InputError(where, "is not an audio file that can be decoded", "use wav, flac, ogg or mp3") from error
        self._where = where
        self._speed = speed
        self._started_s = time.monotonic()
        self._first = 0
        self._damage: soundfile.SoundFileError | None = None
        self.rate = int(self._file.samplerate)
        self.ended = False
        if not 1000 <= self.rate <= 768_000:
            raise InputError(where, f"has a sample rate of {self.rate} Hz")

    def read(self) -> Block | None:
        wanted = int(LONGEST_BLOCK_S * self.rate)
        if self._speed:
            due = int((time.monotonic() - self._started_s) * self._speed * self.rate)
            wanted = min(wanted, due - self._first)
            if wanted < int(LIVE_BLOCK_S * self.rate):
                return None
        if self._file.seekable():
            wanted = min(wanted, self._file.frames - self._first)
        samples = np.full((wanted, self._file.channels), np.nan, np.float32)
        try:
            if self._damage:
                raise self._damage
            samples = self._file.read(out=samples)
        except soundfile.SoundFileError as error:  # how many were decoded it does not say
            self._damage, samples = error, samples[~np.isnan(samples[:, 0])]
            ended = self._file.frames == UNKNOWN and getattr(error, "code", 0) == BAD_SEEK
            if not len(samples) and not ended:
                raise InputError(self._where, f"breaks off at {self._first / self.rate:.1f} s", "it is damaged") from error
        if not len(samples):
            self.ended = True
            return None
        block = Block(mono(samples), self._first, self._started_s + (self._first + len(samples)) / self.rate)
        self._first += len(samples)
        return block

    def wait_s(self, samples: int) -> float:
        if not self._speed:
            return 0.0
        due_s = self._started_s + max((self._first + samples) / self.rate, self._first / self.rate + LIVE_BLOCK_S) / self._speed
        return max(0.0, math.ceil(due_s / LIVE_BLOCK_S) * LIVE_BLOCK_S - time.monotonic())  # many files at once

    def close(self) -> None:
        self._file.close()


class PipeSource:
    """WAV on standard input as it comes, for example from `arecord -f S16_LE -r 48000 -t wav`.

    Who records without end writes a length near 2 or 4 GiB or none: only a shorter one is believed.
    """

    def __init__(self, stream: BinaryIO, header: bytes) -> None:
        """header: what was read of the stream so far, from `RIFF` to the first byte of the data."""
        self._fd = stream.fileno()
        self.rate, self._channels, self._convert, self._width = _parse_wav_header(header)
        length = struct.unpack("<I", header[-4:])[0]
        self._left = length if 0 < length < ENDLESS else sys.maxsize
        self._rest = b""
        self._first = 0
        self._read_at_s = time.monotonic()
        self.ended = False

    def read(self) -> Block | None:
        if not select.select([self._fd], [], [], 0)[0]:
            return None
        frame = self._width * self._channels
        got = os.read(self._fd, min(frame * int(LONGEST_BLOCK_S * self.rate), self._left))
        self._left -= len(got)
        data = self._rest + got
        whole = len(data) // frame * frame
        self._rest = data[whole:]
        if not got or not self._left:
            self.ended = True
        if not whole:
            return None
        samples = mono(self._convert(data[:whole]).reshape(-1, self._channels))
        self._read_at_s = time.monotonic()
        block = Block(samples, self._first, self._read_at_s)
        self._first += len(samples)
        return block

    def wait_s(self, samples: int) -> float:
        if select.select([self._fd], [], [], 0)[0]:
            return 0.0
        frames = min(samples, PIPE_BYTES // 2 // (self._width * self._channels))
        due_s = self._read_at_s + frames / self.rate - time.monotonic()
        return max(POLL_S, due_s, -due_s / 10)  # who is late is looked for ever less often

    def close(self) -> None:
        pass


def open_input(name: str, speed: float) -> FileSource | PipeSource:
    """A file by name, or `-` for standard input: WAV is heard as it arrives, anything else is read to its end first."""
    if name != "-":
        return FileSource(Path(name), speed)
    if sys.stdin is None:
        raise InputError("standard input", "is closed", "pipe audio into it, for example from `arecord -t wav`")
    stream = sys.stdin.buffer.raw if isinstance(sys.stdin.buffer, io.BufferedReader) else sys.stdin.buffer
    start = _read_exactly(stream, 12)
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        return PipeSource(stream, start + _read_to_data(stream))
    rest = b"".join(iter(lambda: stream.read(1 << 16) or b"", b""))
    if not start:
        raise InputError("standard input", "is empty", "pipe audio into it, for example from `arecord -t wav`")
    return FileSource(io.BytesIO(start + rest), speed, "standard input")


def must_be_readable(path: Path, where: str) -> None:
    """Raise InputError for what no decoder need look at: it is not there, is a folder, may not be read, is empty."""
    try:
        path.stat()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(where, what, "is the name right?") from error
    if path.is_dir():
        raise InputError(where, "is a folder", "name an audio file")
    if not os.access(path, os.R_OK):
        raise InputError(where, "may not be read", "check its permissions")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(where, "is empty", "is it an unfinished recording?")


def mono(samples: Floats) -> Floats:
    """[n, channels] -> [n] in -1..1, the mean of the channels; what is not a number becomes silence, what is louder is clipped."""
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = samples[:, 0]
        for channel in samples.T[1:]:  # a tenth of the time of a mean over so short an axis
            mixed = mixed + channel
        mixed = mixed / np.float32(samples.shape[1]) if samples.shape[1] > 1 else mixed
    finite = mixed if np.isfinite(mixed).all() else np.nan_to_num(mixed, nan=0.0, posinf=0.0, neginf=0.0)
    return np.asarray(np.clip(finite, -1, 1), np.float32)


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            break
        data += more
    return data


def _read_to_data(stream: BinaryIO) -> bytes:
    """Chunks up to and with the header of `data`."""
    header = b""
    while True:
        chunk = _read_exactly(stream, 8)
        header += chunk
        if len(chunk) < 8:
            raise InputError("standard input", "is a WAV file without sound", "is the program before the pipe recording?")
        if chunk[:4] == b"data":
            return header
        size = struct.unpack("<I", chunk[4:])[0]
        if size > 1 << 20:
            raise InputError("standard input", "is a WAV file with a damaged header")
        header += _read_exactly(stream, size + size % 2)


def _parse_wav_header(header: bytes) -> tuple[int, int, Callable[[bytes], Floats], int]:
    """(rate, channels, bytes -> float32, bytes a sample)."""
    at = 12
    while header[at : at + 4] not in (b"fmt ", b""):
        size = struct.unpack("<I", header[at + 4 : at + 8])[0]
        at += 8 + size + size % 2
    if len(header) < at + 24:
        raise InputError("standard input", "is a WAV file without a format")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", header[at + 8 : at + 24])
    if kind == 0xFFFE and len(header) >= at + 34:
        kind = struct.unpack("<H", header[at + 32 : at + 34])[0]
    converters: dict[tuple[int, int], Callable[[bytes], Floats]] = {
        (1, 16): lambda data: np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768),
        (1, 24): _from_24,
        (1, 32): lambda data: (np.frombuffer(data, "<i4") / 2147483648).astype(np.float32),
        (3, 32): lambda data: np.frombuffer(data, "<f4").astype(np.float32),
    }
    if (kind, bits) not in converters or not 1 <= channels <= 64 or not 1000 <= rate <= 768_000:
        raise InputError(
            "standard input",
            f"is WAV of kind {kind}, {bits} bits, {channels} channels, {rate} Hz",
            "use 16, 24 or 32 bit PCM or float",
        )
    return rate, channels, converters[kind, bits], bits // 8


def _from_24(data: bytes) -> Floats:
    bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
    return ((bytes_[:, 0] << 8 | bytes_[:, 1] << 16 | bytes_[:, 2] << 24) / 2147483648).astype(np.float32)
