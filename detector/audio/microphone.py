"""A microphone through PortAudio: read in its own rate, noticed when it goes.

PortAudio says nothing when a microphone is lost: the one common sign is that samples stop coming (see `STALL_S`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from detector.audio.devices import CARDS, PULSE, holder, list_devices, portaudio, resolve, within, words
from detector.audio.file import mono
from detector.audio.ring import Ring
from detector.audio.source import LATE_S, LONGEST_BLOCK_S, Block, Floats, Reason, SourceLost
from detector.errors import TryAgainError

STALL_S = 2.0
"""A microphone that gives nothing for so long is lost: samples come every 50 ms."""
BUFFER_S = 0.2
"""The sound card's own buffer: our thread may come so late and nothing is lost. PortAudio's default of 40 ms is soon run over."""
COPY_S = 1.0
HELD_S = LATE_S + COPY_S
"""How much is kept between the sound card's thread and the reader: what a reader may be behind, and time to copy it."""
RATES = (48000, 44100, 32000, 96000, 16000, 24000, 22050, 88200, 192000, 8000, 11025)
"""What is tried, best first, when the rate that PortAudio names is refused: for a headset it may be that of the earphones."""
CHANNELS = 2
"""How many are mixed: a stereo input may have its microphone on either side, the first two of an array stand close together."""
INVALID_RATE, BUSY = -9997, -9985
"""PortAudio's codes of errors."""


class Handover:
    """Samples on their way from the sound card's thread, which puts, to the reader's, which takes. Neither waits for the other.

    buffer_s: how late the first may come without a loss; held_s: how much is kept, of
    which all but COPY_S may lie unread; arrived_s: monotonic time at which
    samples came last.
    """

    def __init__(self, rate: int, channels: int, buffer_s: float, held_s: float = HELD_S) -> None:
        self._rate, self._late = rate, (held_s - COPY_S) * rate
        self._hole = int(2 * buffer_s * rate)
        self._ring = Ring(int(held_s * rate), channels)
        self._lost: deque[tuple[int, int, Reason]] = deque()
        """From and up to which sample nothing was heard, and why, until the reader comes by."""
        self._next, self._wanted = 0, 1
        self._reason: Reason = ""
        self.arrived_s = time.monotonic()

    def put(self, samples: Floats, overflow: bool, now_s: float) -> None:
        """[n, channels], just heard; overflow: some before them were lost. How many, the time since the last ones tells.

        A hole that is longer than lateness can be is a loss as well: the card stood still, or nobody noticed.
        """
        end, missing = self._ring.end, max(1, round((now_s - self.arrived_s) * self._rate) - len(samples))
        self.add(samples, missing if overflow or (end and missing > self._hole) else 0, "overflow", now_s)

    def add(self, samples: Floats, missing: int, reason: Reason, now_s: float) -> None:
        """[n, channels], just heard, after so many that were not."""
        end, self.arrived_s = self._ring.end, now_s
        if missing:
            self._lost.append((end, end + missing, reason))
            self._ring.skip(missing)
        self._ring.write(samples)

    def wait_s(self, samples: int) -> float:
        """Seconds until there may be so many to take: the first thread asks whether there are `enough`, and wakes the second."""
        self._wanted = samples
        return 0.0 if self.enough else 1.0

    @property
    def end(self) -> int:
        """Index after the newest sample."""
        return self._ring.end

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return self._ring.end > self._next

    @property
    def enough(self) -> bool:
        """Whether there is to take what was last waited for."""
        return self._ring.end - self._next >= self._wanted

    def take(self) -> Block | None:
        """All that came since the last call, up to the next loss; None when nothing did. Behind by too much, it goes on
        with what is new."""
        ring, end, arrived_s = self._ring, self._ring.end, self.arrived_s
        if end - self._next > self._late:
            self._jump(end - int(self._late / 2), "overload")
        while self._lost and self._lost[0][0] < end:
            lost, heard, reason = self._lost[0]
            if self._next < lost:
                end = lost
                break
            self._lost.popleft()
            self._jump(heard, reason)
        if (longer := end - self._next - int(LONGEST_BLOCK_S * self._rate)) > 0:
            end, arrived_s = end - longer, arrived_s - longer / self._rate
        if end <= self._next:
            return None
        samples = None
        with contextlib.suppress(IndexError):
            samples = ring.view(self._next, end).copy()
        if samples is None or not ring.holds(self._next):  # overtaken while copying
            self._jump(end, "overload")
            return None
        block = Block(mono(samples), self._next, arrived_s, self._reason)
        self._next, self._reason = end, ""
        return block

    def _jump(self, to: int, reason: Reason) -> None:
        """Go on with sample `to`; the next block says why."""
        self._next = max(self._next, to)
        self._reason = self._reason or reason


class Microphone:
    """One open microphone."""

    def __init__(self, wanted: str, wake: threading.Event) -> None:
        """Open at the device's own rate; wake: set when there is something to read.

        Raises TryAgainError or ConfigError saying why it cannot be opened.
        """
        sd = portaudio()
        self.device = resolve(wanted, list_devices())
        self.ended = False
        self._wake = wake
        self._failure: Exception | None = None
        self._finished = self._closed = False
        self._where = f"microphone {wanted if wanted.startswith(PULSE) else self.device.name}"
        try:
            with server_source(wanted):
                self._stream = within(f"opening {self._where}", lambda: self._open(sd))
        except sd.PortAudioError as error:
            what, fix = f"cannot be opened ({words(error)})", "is it plugged in, and may this user use it (group audio)?"
            if BUSY in error.args:
                what = f"is in use{holder(self.device.place, CARDS) or ' by another program'}"
                fix = "end that program, or name another microphone"
            elif wanted.startswith(PULSE):
                fix = "has the sound server such a source (`pactl list short sources`), and does it run for this user?"
            elif INVALID_RATE in error.args:
                what = f"refuses its own rate of {self.device.rate} Hz and every other up to {max(RATES)} Hz"
                fix = "`--device default` may convert rates"
            raise TryAgainError(self._where, what, fix) from error

    def read(self) -> Block | None:
        """All that came since the last call. Raises SourceLost when it has gone, or nothing has come for STALL_S."""
        if self._failure:
            raise SourceLost(f"{self._where}: {type(self._failure).__name__}: {self._failure}")
        finished, block = self._finished, self._handover.take()
        age_s = time.monotonic() - self._handover.arrived_s
        if block is None and finished:
            raise SourceLost(f"{self._where}: has gone")
        if block is None and age_s > STALL_S:
            raise SourceLost(f"{self._where}: no sound for {age_s:.1f} s")
        return block

    def wait_s(self, samples: int) -> float:
        return self._handover.wait_s(samples)

    def close(self) -> None:
        """Stop and let go. Raises Hang when PortAudio does."""
        if not self._closed:
            self._closed = True
            within(f"closing {self._where}", self._stream.close)

    def _open(self, sd: ModuleType) -> Any:
        """A running stream, at the first rate that is not refused."""
        *rates, last = dict.fromkeys([self.device.rate, *RATES])
        for rate in rates:
            try:
                return self._start(sd, rate)
            except sd.PortAudioError as error:
                if INVALID_RATE not in error.args:
                    raise
        return self._start(sd, last)

    def _start(self, sd: ModuleType, rate: int) -> Any:
        channels = min(CHANNELS, self.device.channels)
        stream = sd.InputStream(
            device=self.device.index,
            samplerate=rate,
            channels=channels,  # PortAudio opens an array that gives all its channels or none
            dtype="float32",
            latency=BUFFER_S,
            callback=self._hear,
            finished_callback=self._finish,
        )
        self.rate, self._handover = rate, Handover(rate, channels, max(BUFFER_S, stream.latency))
        try:
            stream.start()
        except sd.PortAudioError:
            stream.close()
            raise
        return stream

    def _hear(self, samples: Floats, _frames: int, _time: Any, status: Any) -> None:
        """In the sound card's thread: copy and go. An exception that left it would only be printed."""
        try:
            self._handover.put(samples, status.input_overflow, time.monotonic())
        except Exception as error:  # noqa: BLE001 - the reader says it
            self._failure = error
        if self._failure or self._handover.enough:
            self._wake.set()

    def _finish(self) -> None:
        self._finished = True
        self._wake.set()


@contextlib.contextmanager
def server_source(wanted: str) -> Iterator[None]:
    """While it lasts, the sound server's client library opens the source that `pulse:SOURCE` names: it reads PULSE_SOURCE."""
    if not wanted.startswith(PULSE):
        yield
        return
    before = os.environ.get("PULSE_SOURCE")
    os.environ["PULSE_SOURCE"] = wanted.removeprefix(PULSE)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PULSE_SOURCE"]
        else:
            os.environ["PULSE_SOURCE"] = before
