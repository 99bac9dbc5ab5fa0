"""A microphone through PortAudio: resolved exactly, read in its own rate, noticed when it goes.

PortAudio says nothing when a microphone is lost: the one common sign is that blocks stop coming (see `STALL_S`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from detector.audio.file import mono
from detector.audio.ring import Ring
from detector.audio.source import LONGEST_BLOCK_S, Block, Floats, SourceLost
from detector.errors import ConfigError, Hang, TryAgainError

STALL_S = 2.0
"""A microphone that gives nothing for so long is lost: blocks come every 20 ms."""
BLOCK_S = 0.02
HELD_S = 11.0
"""How much is kept between the sound card's thread and the reader: a stall of the reader up to a second less loses nothing."""
DEADLINE_S = 5.0
"""PortAudio's calls may hang for ever on a card that has gone; past this only a new process helps."""


@dataclass(frozen=True)
class Device:
    """An input device as PortAudio lists it."""

    index: int
    name: str
    channels: int
    rate: int
    is_default: bool


def portaudio() -> ModuleType:
    """The sounddevice module. Raises ConfigError where the PortAudio library is missing."""
    try:
        import sounddevice
    except OSError as error:
        raise ConfigError("PortAudio", "is not installed", "install it, on Debian: apt install libportaudio2") from error
    return sounddevice  # type: ignore[no-any-return]


def list_devices() -> list[Device]:
    """Every input device there is now."""
    sd = portaudio()
    default = sd.default.device[0]
    if default < 0:
        default = next((api["default_input_device"] for api in sd.query_hostapis()), -1)
    return [
        Device(index, str(entry["name"]), int(entry["max_input_channels"]), round(entry["default_samplerate"]), index == default)
        for index, entry in enumerate(sd.query_devices())
        if entry["max_input_channels"] > 0
    ]


def resolve(wanted: str, devices: Sequence[Device], cards: Path = Path("/proc/asound")) -> Device:
    """The one device meant by `hw:N[,M]`, `hw:CARD=name`, an index, a name or part of one, or `default`.

    Raises TryAgainError when it is not there (now), ConfigError when several fit.
    """
    if not devices:
        raise TryAgainError("microphone", "this computer has no input device", "plug one in; `urbandetect devices` lists them")
    listing = ", ".join(f"{device.index} {device.name}" for device in devices)
    if wanted in ("", "default"):
        return next((device for device in devices if device.is_default), devices[0])
    named = re.fullmatch(r"hw:CARD=([\w-]+)(?:,(?:DEV=)?(\d+))?", wanted)
    if named and (link := cards / named[1]).is_symlink():
        wanted = f"hw:{link.readlink().name.removeprefix('card')},{named[2] or 0}"
    if re.fullmatch(r"\d+", wanted):
        found = [device for device in devices if device.index == int(wanted)]
    elif numbered := re.fullmatch(r"hw:(\d+)(?:,(\d+))?", wanted):
        found = [device for device in devices if device.name.endswith(f"(hw:{numbered[1]},{numbered[2] or 0})")]
    else:
        found = [device for device in devices if device.name == wanted]
        found = found or [device for device in devices if wanted.casefold() in device.name.casefold()]
    if not found:
        raise TryAgainError(f"microphone {wanted}", "is not there", f"there are: {listing}")
    if len(found) > 1:
        several = ", ".join(f"{device.index} {device.name}" for device in found)
        raise ConfigError(f"microphone {wanted}", f"fits several: {several}", "name one by its index or its full name")
    return found[0]


class Microphone:
    """One open microphone. The sound card's thread writes into a ring; `read` takes out what is new."""

    def __init__(self, wanted: str, wake: threading.Event) -> None:
        """Open at the device's own rate. Raises TryAgainError or ConfigError saying why it cannot be opened."""
        sd = portaudio()
        self.device = resolve(wanted, list_devices())
        self.rate = self.device.rate
        self.ended = False
        self._wake = wake
        self._ring = Ring(int(HELD_S * self.rate))
        self._read = 0
        self._finished = False
        self._arrived_s = time.monotonic()
        self._closed = False
        where = f"microphone {self.device.name}"

        def open_stream() -> Any:
            stream = sd.InputStream(
                device=self.device.index,
                samplerate=self.rate,
                channels=min(2, self.device.channels),
                dtype="float32",
                blocksize=int(BLOCK_S * self.rate),
                callback=self._hear,
                finished_callback=self._finish,
            )
            try:
                stream.start()
            except sd.PortAudioError:
                stream.close(ignore_errors=True)
                raise
            return stream

        try:
            self._stream = within(DEADLINE_S, f"opening {where}", open_stream)
        except sd.PortAudioError as error:
            raise TryAgainError(
                where, f"cannot be opened ({' '.join(str(error).split())[:120]})", "is another program using it?"
            ) from error
        self._arrived_s = time.monotonic()

    def read(self) -> Block | None:
        """All that came since the last call, at most LONGEST_BLOCK_S of it. Raises SourceLost when nothing has come for STALL_S."""
        ring = self._ring
        end = ring.end
        arrived_s = self._arrived_s
        if end == self._read:
            age_s = time.monotonic() - arrived_s
            if self._finished or age_s > STALL_S:
                raise SourceLost(f"microphone {self.device.name}: no sound for {age_s:.1f} s")
            return None
        start = max(self._read, min(ring.gap_end, end), end - ring.capacity + self.rate)
        end = min(end, start + int(LONGEST_BLOCK_S * self.rate))
        samples = ring.view(start, end).copy()
        self._read = end
        if not ring.holds(start):
            return None  # overtaken while copying: the next block shows the gap
        return Block(samples, start, arrived_s)

    def wait_s(self) -> float:
        return 1.0

    def close(self) -> None:
        """Stop and let go. Raises TryAgainError when PortAudio hangs in it."""
        if not self._closed:
            self._closed = True
            within(DEADLINE_S, f"closing microphone {self.device.name}", lambda: self._stream.close(ignore_errors=True))

    def _hear(self, samples: Floats, _frames: int, _time: Any, status: Any) -> None:
        """In the sound card's thread: copy and go."""
        before_s, self._arrived_s = self._arrived_s, time.monotonic()
        if status.input_overflow:
            self._ring.skip(max(1, round((self._arrived_s - before_s) * self.rate) - len(samples)))
        self._ring.write(mono(samples))
        self._wake.set()

    def _finish(self) -> None:
        self._finished = True
        self._wake.set()


def rescan() -> None:
    """Let PortAudio look for devices again. Ends every open stream: call it only when none is open."""
    sd = portaudio()

    def again() -> None:
        try:
            sd._terminate()
            sd._initialize()
        except sd.PortAudioError as error:
            raise TryAgainError("PortAudio", f"cannot look for microphones ({' '.join(str(error).split())[:120]})") from error

    within(DEADLINE_S, "looking for microphones", again)


def within(deadline_s: float, doing: str, call: Callable[[], Any]) -> Any:
    """The result of a call that may hang. Raises what it raises, and Hang past the deadline: the thread is then lost."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=target, name=doing, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise Hang(doing, f"hangs for more than {deadline_s:g} s", "a supervisor should start the program again")
    if failure:
        raise failure[0]
    return result[0]
