"""Which microphones there are, and which is meant. Any call into PortAudio may hang: each has a deadline (see `within`)."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from detector.errors import ConfigError, Hang, TryAgainError

CARDS, USB, NODES = Path("/proc/asound"), Path("/sys/class/sound"), Path("/dev/snd")
"""Where Linux tells of its sound cards, of the USB devices they are, and where programs open them."""
PULSE = "pulse:"
"""Before the name of a source of PulseAudio, or of PipeWire in its place."""
FORMS = {
    "hw:": (
        r"hw:(?:([0-9]+)|CARD=([\w-]+))(?:,(?:DEV=)?([0-9]+))?",
        "is not hw:N, hw:N,M or hw:CARD=name",
        "`urbandetect devices` lists what there is",
    ),
    "usb:": (
        r"usb:([0-9a-fA-F]{4}:[0-9a-fA-F]{4})(?::(.+))?",
        "is not usb:VID:PID or usb:VID:PID:SERIAL",
        "for example usb:0d8c:0014; `lsusb` lists them",
    ),
    PULSE: (r"pulse:.+", "is not pulse:SOURCE", "`pactl list short sources` lists their names"),
}
"""What begins so is of this form, or misspelt: what is said then, and what to do."""
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

    @property
    def place(self) -> tuple[int, int] | None:
        """Number of the card and of the device on it, from its name; None for what is no card."""
        found = re.search(r"\(hw:(\d+),(\d+)(?:,0)?\)", self.name)
        return (int(found[1]), int(found[2])) if found else None


def portaudio() -> ModuleType:
    """The sounddevice module, which starts PortAudio when it is first imported.

    Raises ConfigError where the PortAudio library is missing, TryAgainError when it does not start.
    """

    def load() -> ModuleType:
        import sounddevice

        return sounddevice  # type: ignore[no-any-return]

    try:
        sd: ModuleType = within("starting PortAudio", load)
    except (ImportError, OSError) as error:
        raise ConfigError("PortAudio", "is not installed", "install it, on Debian: apt install libportaudio2") from error
    except Hang:
        raise
    except Exception as error:  # its own class of error is not there yet
        raise TryAgainError("PortAudio", f"does not start ({words(error)})", "is ALSA's configuration in order?") from error
    silence()
    return sd


def list_devices() -> list[Device]:
    """Every input device there is now. Raises what `portaudio` raises."""
    sd = portaudio()

    def ask() -> list[Device]:
        apis = sd.query_hostapis()
        default = sd.default.device[0]
        if default < 0:
            default = next((api["default_input_device"] for api in apis), -1)
        devices = []
        for index in sorted(index for api in apis for index in api["devices"]):
            with contextlib.suppress(UnicodeDecodeError):  # the kernel cuts long names, within a letter if need be
                entry = sd.query_devices(index)
                rate, channels = round(entry["default_samplerate"]), int(entry["max_input_channels"])
                devices += [Device(index, str(entry["name"]), channels, rate, index == default)] if channels > 0 else []
        return devices

    try:
        return within("listing microphones", ask)  # type: ignore[no-any-return]
    except sd.PortAudioError as error:
        raise TryAgainError("PortAudio", f"cannot list microphones ({words(error)})") from error


def check_name(wanted: str, where: str) -> None:
    """Raise ConfigError for the name of a microphone that is misspelt."""
    for begin, (form, what, fix) in FORMS.items():
        if wanted.startswith(begin) and not re.fullmatch(form, wanted):
            raise ConfigError(where, what, fix)
    if re.fullmatch(r"[-+]?[0-9.]+", wanted) and not re.fullmatch(r"[0-9]+", wanted):
        raise ConfigError(where, "is no index", "give a whole number from 0; `urbandetect devices` lists them")


def resolve(wanted: str, devices: Sequence[Device], cards: Path = CARDS, usb: Path = USB) -> Device:
    """The one device meant by `hw:N[,M]`, `hw:CARD=name`, `usb:VID:PID[:SERIAL]`, `pulse:SOURCE`, an index, a name or part of one,
    or `default`.

    The third part of `usb:` may be the USB port as well: not all have a serial number. PortAudio knows one device for all sources
    of a sound server: which is meant, opening it says. cards, usb: see CARDS and USB.
    Raises TryAgainError when it is not there (now) or in use, ConfigError when several fit or it is misspelt.
    """
    where = f"microphone {wanted or 'default'}"
    check_name(wanted, where)
    found_at = place(wanted, cards, usb)
    if found_at:
        found = [device for device in devices if device.place == found_at]
        if not found and (who := holder(found_at, cards)):  # PortAudio leaves out what it cannot open
            raise TryAgainError(where, f"is in use{who}", "end that program, or name another microphone")
    elif wanted.startswith(("hw:", "usb:")):
        found = []
    elif wanted.startswith(PULSE):
        found = [device for device in devices if device.name == "pulse"]
    elif re.fullmatch(r"[0-9]+", wanted):
        found = [device for device in devices if device.index == int(wanted)]
    elif wanted in ("", "default"):
        found = sorted(devices, key=lambda device: not device.is_default)[:1]
    else:
        found = [device for device in devices if device.name == wanted]
        found = found or [device for device in devices if wanted.casefold() in device.name.casefold()]
    if not devices:
        raise TryAgainError(where, "this computer has no input device that can be opened", "plug one in, or end who uses it")
    if not found:
        listing = ", ".join(f"{device.index} {device.name}" for device in devices)
        raise TryAgainError(where, "is not there", f"there are: {listing}")
    if len(found) > 1:
        several = ", ".join(f"{device.index} {device.name}" for device in found)
        raise ConfigError(where, f"fits several: {several}", "name one by its index or its full name")
    return found[0]


def rescan() -> None:
    """Let PortAudio look for devices again. Ends every open stream: call it only when none is open."""
    sd = portaudio()

    def again() -> None:
        if sd._initialized:  # else it did not start the last time
            sd._terminate()
        sd._initialize()

    try:
        within("looking for microphones", again)
    except sd.PortAudioError as error:
        raise TryAgainError("PortAudio", f"cannot look for microphones ({words(error)})") from error


def within(doing: str, call: Callable[[], Any]) -> Any:
    """The result of a call that may hang. Raises what it raises, and Hang past DEADLINE_S: the thread is then lost."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failure.append(error)

    stderr = -1
    with contextlib.suppress(OSError):
        stderr = os.dup(2)
    thread = threading.Thread(target=target, name=doing, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if stderr >= 0:
        if thread.is_alive():
            os.dup2(stderr, 2)  # sounddevice mutes it while PortAudio starts: who hangs there must still be able to say so
        os.close(stderr)
    if thread.is_alive():
        raise Hang(doing, f"hangs for more than {DEADLINE_S:g} s", "a supervisor should start the program again")
    if failure:
        raise failure[0]
    return result[0]


def place(wanted: str, cards: Path, usb: Path) -> tuple[int, int] | None:
    """Number of the card and of the device on it meant by `hw:...` or `usb:...`; None when it is not there, or neither is meant."""
    where = f"microphone {wanted}"
    if form := re.fullmatch(FORMS["hw:"][0], wanted):
        link = cards / (form[2] or "")
        if form[2] and not link.is_symlink():
            return None
        return int(form[1] or link.readlink().name.removeprefix("card")), int(form[3] or 0)
    if form := re.fullmatch(FORMS["usb:"][0], wanted):
        alike = []
        for usbid in cards.glob("card*/usbid"):
            with contextlib.suppress(OSError):  # it goes while we look
                if usbid.read_text().strip().lower() == form[1].lower():
                    device = (usb / usbid.parent.name / "device").resolve().parent  # the sound is an interface of it
                    serial = (device / "serial").read_text().strip() if (device / "serial").exists() else ""
                    alike.append((int(usbid.parent.name.removeprefix("card")), serial, device.name))
        found = [number for number, *names in alike if not form[2] or form[2] in names]
        if len(found) > 1:
            choices = ", ".join(f"card {number} (serial {serial or 'none'}, port {port})" for number, serial, port in sorted(alike))
            raise ConfigError(where, f"fits several: {choices}", "add the serial number or the port of one, after another colon")
        return (found[0], 0) if found else None
    return None


def holder(place: tuple[int, int] | None, cards: Path) -> str:
    """Who has this device open, where the kernel tells: ` by NAME (process PID)`; empty when nobody has."""
    if place:
        with contextlib.suppress(OSError):
            owner = re.search(r"owner_pid\s*:\s*(\d+)", (cards / f"card{place[0]}/pcm{place[1]}c/sub0/status").read_text())
            if owner:
                return f" by {_program(place, owner[1])}"
    return ""


def _program(place: tuple[int, int], owner: str) -> str:
    """Who has it open. owner: the thread that opened it, as the kernel tells; one of ours has ended since (see `within`)."""
    node = str(NODES / f"pcmC{place[0]}D{place[1]}c")
    candidates = [owner]
    for link in glob.iglob("/proc/[0-9]*/fd/*"):  # noqa: PTH207 - a Path's stops where a process ends meanwhile
        with contextlib.suppress(OSError):
            if str(Path(link).readlink()) == node:
                candidates.insert(0, link.split("/")[2])
    for process in candidates:
        with contextlib.suppress(OSError):
            return f"{Path('/proc', process, 'comm').read_text().strip()} (process {process})"
    return "another program"


def words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


@cache
def silence() -> None:
    """PortAudio, ALSA and libmpg123 print what fails inside of them, for a card that was pulled out 100,000 lines a second.
    We say it once.

    Only what speaks through the C library's `stderr` falls silent: neither Python nor our log does.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):  # elsewhere it cannot be changed
        libc.fopen.restype = ctypes.c_void_p
        ctypes.c_void_p.in_dll(libc, "stderr").value = libc.fopen(b"/dev/null", b"w")
