"""The microphones: there, free, opened, giving samples, and samples that are sound."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.audio.devices import CARDS, NODES, holder, list_devices, portaudio
from detector.audio.level import dbfs
from detector.audio.microphone import Microphone
from detector.audio.source import REASONS, Floats, Reason, Source, SourceLost
from detector.audio.url import is_stream
from detector.config import SourceSettings
from detector.doctor.check import Check, failed, skipped
from detector.errors import ConfigError, Hang, InputError, TryAgainError, UrbandetectError

DEVICE, OPENS, SAMPLES, LEVEL = ("device", "opens", "samples", "level")
FULL_SCALE = 0.999
"""A converter that has reached its end gives this or more."""
CLIPPED_SHARE = 0.001
"""5 ms of five seconds: a clap may clip, a street must not."""
QUIET_DBFS = -80.0
"""The noise of a living microphone and its amplifier is above this, a muted one's may be below."""
OFFSET = 0.02
"""A constant in the samples that eats headroom; a sound card has less."""
RATE_ERROR = 0.05
"""Samples that come so much slower or quicker than the rate says are lost somewhere, or the rate is not the card's.
Arrival on a busy computer is not more exact over a few seconds."""
TIMED_S = 2.0
"""What is too short to count samples by."""
Word = Callable[[], Mapping[str, Any] | None]
"""The running daemon's own `health`, None where none is online."""


@dataclass
class Heard:
    """What came of listening. rate: samples per second; seconds: how long it was heard, from the first block on; samples: how many
    came after that block; gaps: how often some were missing, by reason; lost: why it ended early, empty when it did not; and of all
    samples their count, total, sum of squares, how many were at full scale, and their extremes."""

    rate: int
    seconds: float = 0.0
    samples: int = 0
    gaps: Counter[Reason] = field(default_factory=Counter)
    lost: str = ""
    count: int = 0
    total: float = 0.0
    square_sum: float = 0.0
    clipped: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")

    def hear(self, samples: Floats) -> None:
        """Count samples in."""
        self.count += len(samples)
        self.total += float(samples.sum(dtype=np.float64))
        self.square_sum += float(np.dot(samples, samples))
        self.clipped += int(np.count_nonzero(np.abs(samples) >= FULL_SCALE))
        self.lowest = min(self.lowest, float(samples.min()))
        self.highest = max(self.highest, float(samples.max()))


def portaudio_and_sources(name: str, sources: Sequence[SourceSettings], seconds: float, word: Word) -> Iterator[Check]:
    """PortAudio under this name, then the four checks of each source, which is heard for so long."""
    trouble: UrbandetectError | None = None
    if all(source.input for source in sources):
        yield Check(name, "skip", "no source is a microphone")
    else:
        try:
            version, devices = portaudio().get_portaudio_version()[1].partition(",")[0], list_devices()
            yield Check(name, "ok", f"{version}, input devices: {', '.join(d.name for d in devices) or 'none that can be opened'}")
        except UrbandetectError as error:
            trouble = error
            yield failed(name, error)
    for source in sources:
        prefix = f"{source.name} "
        if is_stream(source.input):
            from detector.doctor.stream import examine

            yield from examine([prefix + what for what in (DEVICE, OPENS, SAMPLES, LEVEL)], source.input, seconds)
        elif source.input:
            yield from _recording(prefix, source.input)
        elif trouble:
            yield from skipped((prefix + what for what in (DEVICE, OPENS, SAMPLES, LEVEL)), "PortAudio cannot be used")
        else:
            yield from _microphone(prefix, source, seconds, word)


def _recording(prefix: str, path: str) -> Iterator[Check]:
    if path == "-":
        yield Check(prefix + DEVICE, "skip", "standard input is for the daemon")
    else:
        from detector.audio.file import FileSource

        try:
            FileSource(Path(path)).close()
            yield Check(prefix + DEVICE, "ok", f"the recording {path}")
        except InputError as error:
            yield failed(prefix + DEVICE, error)
    yield from skipped((prefix + what for what in (OPENS, SAMPLES, LEVEL)), "no microphone")


def _microphone(prefix: str, source: SourceSettings, seconds: float, word: Word) -> Iterator[Check]:
    device, *rest = (prefix + what for what in (DEVICE, OPENS, SAMPLES, LEVEL))
    try:
        microphone = Microphone(source.device, threading.Event())
    except TryAgainError as error:
        health = None if isinstance(error, Hang) else word()
        said = ((health or {}).get("sources") or {}).get(source.name)
        if isinstance(said, dict):
            yield Check(device, "ok", f"the running daemon has it, this is what its `health` says (else: {error.what})")
            yield from _daemons_word(rest, said)
            return
        yield _why_not(device, error)
        yield from skipped(rest, "it cannot be opened")
        return
    except ConfigError as error:
        yield failed(device, error)
        yield from skipped(rest, "which one is meant is not known")
        return
    meant = source.device or "default"
    yield Check(device, "ok", f"{meant} is {microphone.device.index} {microphone.device.name}")
    also = "" if microphone.rate == microphone.device.rate else f" (PortAudio named {microphone.device.rate} Hz)"
    yield Check(rest[0], "ok", f"at {microphone.rate} Hz{also}")
    heard = listen(microphone, seconds)
    yield judge_samples(rest[1], heard)
    yield judge_level(rest[2], heard)
    with contextlib.suppress(Hang):  # the samples have said it
        microphone.close()


def listen(source: Source, seconds: float) -> Heard:
    """Hear for so long, or until it is lost."""
    heard = Heard(source.rate)
    began_s, first_at_s, last_at_s = time.monotonic(), 0.0, 0.0
    while time.monotonic() - began_s < seconds:
        try:
            block = source.read()
        except SourceLost as lost:
            heard.lost = f"{lost}"
            break
        if block is None:
            time.sleep(0.02)
            continue
        if block.reason:
            heard.gaps[block.reason] += 1
        heard.hear(block.samples)
        if first_at_s:  # the first block is what the card has held back
            heard.samples += len(block.samples)
            last_at_s = block.arrived_s
        else:
            first_at_s = last_at_s = block.arrived_s
    heard.seconds = last_at_s - first_at_s
    return heard


def judge_samples(name: str, heard: Heard) -> Check:
    """Whether samples come, all of them, as quickly as they should."""
    if heard.lost:
        return Check(name, "fail", heard.lost, "plug it out and in, try another cable or port; `dmesg` says more")
    if not heard.count:
        return Check(name, "fail", "no sample came", "listen longer with --seconds; plug the microphone out and in")
    if heard.gaps:
        what = ", ".join(f"{count} times samples were lost ({REASONS[reason]})" for reason, count in sorted(heard.gaps.items()))
        return Check(name, "warn", what, "end other programs, take the microphone off a USB hub")
    if heard.seconds < TIMED_S:
        return Check(name, "ok", f"{heard.count} samples came")
    came = heard.samples / heard.seconds
    if abs(came / heard.rate - 1) > RATE_ERROR:
        what = f"{came:,.0f} samples came a second, at a rate of {heard.rate} Hz"
        return Check(name, "warn", what, "name the microphone as hw:CARD=name: something between loses or repeats samples")
    return Check(name, "ok", f"they come, none is missing ({heard.count / heard.rate:.1f} s)")


def judge_level(name: str, heard: Heard) -> Check:
    """Whether the samples are sound."""
    if not heard.count:
        return Check(name, "skip", "no sample came")
    if heard.lowest == heard.highest:
        what = f"digital silence: every sample is {heard.lowest:g}"
        fix = "the microphone is muted or dead: look for a switch on it, unmute it with `alsamixer -V capture`, try another port"
        return Check(name, "fail", what, fix)
    mean = heard.total / heard.count
    level = dbfs(max(0.0, heard.square_sum / heard.count - mean * mean))
    what, fixes, share = f"{level:.1f} dBFS", [], heard.clipped / heard.count
    if level < QUIET_DBFS:
        what += ", which is hardly alive"
        fixes.append("raise the capture level with `alsamixer -V capture`; is it the right input?")
    if share > CLIPPED_SHARE:
        what += f", {share:.1%} of the samples clipped"
        fixes.append("lower the capture level with `alsamixer -V capture`")
    if abs(mean) > OFFSET:
        what += f", a constant of {mean:+.3f} in all samples"
        fixes.append("a constant takes headroom away: try another port or sound card")
    return Check(name, "warn" if fixes else "ok", what, "; ".join(fixes))


def _daemons_word(names: Sequence[str], said: Mapping[str, Any]) -> Iterator[Check]:
    """What a running daemon says of this source, in place of what we would have heard."""
    opens, samples, level = names
    if not said.get("hearing"):
        yield Check(
            opens, "fail", f"the daemon does not hear it: {said.get('trouble') or 'no sound yet'}", "journalctl -u urbandetect"
        )
        yield from skipped((samples, level), "the daemon does not hear it")
        return
    yield Check(opens, "ok", "the daemon hears it")
    gaps = ", ".join(f"{count} {reason}" for reason, count in sorted((said.get("gaps") or {}).items()))
    yield Check(samples, "ok", f"the daemon counts gaps: {gaps}" if gaps else "the daemon counts no gap")
    if said.get("silent"):
        fix = "the microphone is muted or dead: look for a switch on it, unmute it with `alsamixer -V capture`"
        yield Check(level, "fail", "the daemon hears digital silence", fix)
    else:
        yield Check(level, "ok", "the daemon hears more than digital silence; its `level` topic says how much")


def _why_not(name: str, error: TryAgainError) -> Check:
    """Why a microphone cannot be opened, and what to do."""
    if isinstance(error, Hang):
        return Check(name, "fail", f"PortAudio hangs ({error.where})", "plug the microphone out and in")
    who, nothing = ", ".join(holders()), "no input device" in error.what
    held = who if nothing else error.what if "in use" in error.what else ""
    if "by urbandetect (process" in held:
        what = f"{error.where}: a running urbandetect has it ({held}), and the broker has no word of it"
        fix = "`journalctl -u urbandetect` says how it is heard; stop that one to have it heard here"
        return Check(name, "warn", what, fix)
    if nothing and who:  # PortAudio leaves out what it cannot open
        return Check(
            name, "fail", f"{error.where}: every microphone is in use: {who}", "end that program, or name another microphone"
        )
    fixes = (error.fix, hint() if "opened" in error.what else "")
    return Check(name, "fail", f"{error.where}: {error.what}", "; ".join(filter(None, fixes)))


def holders(cards: Path = CARDS) -> list[str]:
    """Every microphone that somebody has open, and who, where the kernel tells."""
    found = []
    for status in sorted(cards.glob("card*/pcm*c/sub0/status")):
        place = int(status.parts[-4].removeprefix("card")), int(status.parts[-3][3:-1])
        if who := holder(place, cards):
            found.append(f"hw:{place[0]},{place[1]}{who}")
    return found


def hint(snd: Path = NODES, runtime: str = os.environ.get("XDG_RUNTIME_DIR", "")) -> str:
    """Why Linux may show no microphone to this user. snd: the sound cards' device nodes; runtime: the user's sockets."""
    inputs = glob.glob(f"{snd}/pcm*c")  # noqa: PTH207 - a Path's glob raises where the folder may not be read
    if not Path("/proc/self").exists():  # not Linux
        return ""
    if not inputs:
        return f"the kernel knows no microphone ({snd}/pcm*c): is it plugged in, and passed to this container or virtual machine?"
    if not any(os.access(node, os.R_OK | os.W_OK) for node in inputs):
        return "this user may use none: `sudo usermod -aG audio $USER`, and log in again"
    for socket, server in (("pipewire-0", "PipeWire"), ("pulse/native", "PulseAudio")):
        if runtime and Path(runtime, socket).exists():
            return f"{server} runs and may hold it: name it `default` or `pulse`, or free it in {server}'s settings"
    return ""
