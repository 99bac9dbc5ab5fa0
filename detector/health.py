"""How the daemon is: what `health` says, what a supervisor is told, and who ends a daemon that hangs."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from detector.model import Model

log = logging.getLogger(__name__)

HANG_S = 20.0
"""A loop that stands still for so long hangs: every call in it that may take long has a deadline below."""
HUNG = 75


def own_version() -> str:
    """The installed version, `0` where the package is run without being installed."""
    try:
        return version("urbandetect")
    except PackageNotFoundError:
        return "0"


def health(model: Model, uptime_s: float, sources: Mapping[str, Any], publisher: Mapping[str, Any]) -> dict[str, Any]:
    """What `health` on the broker says. sources: per source how it is heard; publisher: its connection and what waits for it."""
    d = model.description
    return {
        "version": own_version(),
        "model": {"name": d.name, "version": d.version, "sha256": d.sha256},
        "provider": model.provider,
        "uptime_s": round(uptime_s),
        "sources": {name: dict(facts) for name, facts in sources.items()},
        **publisher,
    }


def notify(state: str) -> None:
    """Tell systemd: lines such as `READY=1` or `STATUS=...` (sd_notify(3)). Nothing happens where it does not supervise us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor:
        try:
            supervisor.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError as error:
            log.debug("the supervisor cannot be told (%s)", error)


def end_when_it_hangs(progress: Callable[[], object], doing: Callable[[], str], hang_s: float = HANG_S) -> None:
    """From another thread, end the process with 75 when `progress()` gives the same for `hang_s`, and say what it was `doing()`.

    systemd's watchdog does the same from outside and needs nothing of us; this works everywhere else. Time in which this thread
    does not run either (the process was stopped, the computer slept) does not count.
    """

    def watch() -> None:
        seen, still_s = progress(), 0.0
        while True:
            time.sleep(hang_s / 20)
            now = progress()
            seen, still_s = now, still_s + hang_s / 20 if now == seen else 0.0
            if still_s >= hang_s:
                end = threading.Timer(1.0, os._exit, (HUNG,))  # who hangs may hold the log's lock
                end.daemon = True
                end.start()
                log.critical("%s hangs for %g s; ending, so that a supervisor starts it again", doing(), hang_s)
                os._exit(HUNG)

    threading.Thread(target=watch, name="watch", daemon=True).start()
