"""A network stream: its name known, its server there, sound in what it sends, and what that sound is like."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from detector.audio.level import dbfs
from detector.audio.source import REASONS, SourceLost
from detector.audio.stream import SETTLE_S, Stream
from detector.audio.url import shown
from detector.doctor.check import Check, failed, skipped
from detector.doctor.sound import Heard, listen
from detector.errors import ConfigError

POLL_S = 0.02


def examine(names: Sequence[str], url: str, seconds: float) -> Iterator[Check]:
    """Four checks under these names: the address, the first sound, that more comes, its level. Heard for so long."""
    device, opens, samples, level = names
    try:
        address = resolve(url)
        stream = Stream(url, threading.Event())
    except (OSError, UnicodeError, ConfigError) as error:
        fix = "is the name right, and does this computer's name server know it?"
        yield (
            failed(device, error)
            if isinstance(error, ConfigError)
            else Check(device, "fail", f"{shown(url)}: {getattr(error, 'strerror', None) or error}", fix)
        )
        yield from skipped(names[1:], "it cannot be opened")
        return
    yield Check(device, "ok", f"{shown(url)} is at {address}")
    began_s = time.monotonic()
    try:
        while not stream.rate:
            stream.read()
            time.sleep(POLL_S)
        yield Check(
            opens, "ok", f"{stream.codec}, {stream.layout}, {stream.rate} Hz, heard after {time.monotonic() - began_s:.1f} s"
        )
        heard = listen(stream, SETTLE_S + seconds)
        yield judge_samples(samples, heard)
        yield judge_level(level, heard)
    except SourceLost as lost:
        yield Check(opens, "fail", f"{lost}", "try the same URL in a player, from this computer: `ffplay URL`")
        yield from skipped((samples, level), "it is not heard")
    finally:
        stream.close()


def resolve(url: str) -> str:
    """The address and port of its server. Raises OSError where the name is not known."""
    parts = urlsplit(url)
    port = parts.port or {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[parts.scheme.lower()]
    address = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0][4]
    return f"{address[0]!s} port {address[1]!s}"


def judge_samples(name: str, heard: Heard) -> Check:
    """Whether sound goes on coming. How quickly says nothing: servers send what was before at once."""
    if heard.lost or not heard.count:
        return Check(name, "fail", heard.lost or "no sample came", "the server ended it, or the network is too slow")
    if heard.gaps:
        what = ", ".join(f"{count} times samples were lost ({REASONS[reason]})" for reason, count in sorted(heard.gaps.items()))
        return Check(name, "warn", what, "is the network, a camera's Wi-Fi before all, good enough?")
    return Check(name, "ok", f"they come, none is missing ({heard.count / heard.rate:.1f} s)")


def judge_level(name: str, heard: Heard) -> Check:
    """Whether it is more than silence."""
    if not heard.count:
        return Check(name, "skip", "no sample came")
    if heard.lowest == heard.highest:
        what = f"digital silence: every sample is {heard.lowest:g}"
        return Check(name, "warn", what, "is the camera's microphone switched on?")
    return Check(name, "ok", f"{dbfs(heard.square_sum / heard.count):.1f} dBFS")
