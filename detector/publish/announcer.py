"""When Home Assistant is told, what is remembered of it, and what it may ask for.

What was announced is retained by the broker and outlives us: a file beside the outbox remembers it, so that a source that was
renamed or a discovery that was switched off is taken back.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from pathlib import Path

from detector.config import HomeAssistantSettings
from detector.publish.home_assistant import LOWEST, Announced, Place, announced, asked, discovery, gone

log = logging.getLogger(__name__)

BIRTH_S = 10.0
"""Home Assistant that has just started is told again within so long, at random: many devices do, and it is busy. Nor is it told
more often: what it is told while it takes in the last, it may take only in part."""
CLEARED_S = 2.0
"""Between taking back and announcing: Home Assistant removes an entity a little later, and takes no second one of a unique_id."""
SAY_S = 60.0
"""Thresholds that others set are said at most so often, and what is none too: nobody fills our log from outside."""
SHOWN = 40
"""Characters shown of what somebody sent."""


class Announcer:
    """`wishes` is called by the daemon's thread, everything else by the connection's.

    off: discovery is off, and all that is left to do is to take back what was announced.
    """

    def __init__(self, settings: HomeAssistantSettings, place: Place, memory: Path) -> None:
        self.off = settings.discovery == "off"
        self._memory = memory
        self._old = _read(memory)
        self._new: Announced = {} if self.off else announced(place, settings.discovery, settings.prefix)
        self._gone = gone(self._old, self._new)
        self._messages = {} if self.off else discovery(place, settings.discovery, settings.prefix, self._old)
        self._birth = f"{settings.prefix}/status"
        self._commands = {f"{topic}/set": what for topic, what in place.thresholds().items()}
        self.filters = [] if self.off else [self._birth, f"{place.base}/+/threshold/+/set"]
        """What is subscribed to."""
        self._due_s = 0.0  # at the first connection, at once
        self._told_s = self._said_s = self._ignored_s = float("-inf")
        self._begun = self._settled = False
        self._lock = threading.Lock()
        self._wishes: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], float] = {}

    def due(self) -> dict[str, str]:
        """Topics and payloads to be published and retained now: mostly none."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return {}
        self._due_s, self._told_s = float("inf"), now_s
        if not self._begun:
            self._begun = True
            both = {topic: {**self._old.get(topic, {}), **keys} for topic, keys in self._new.items()}
            _write(self._memory, {**self._old, **both})
            if self._gone:
                self._due_s = now_s + CLEARED_S
                return dict.fromkeys(self._gone, "")
        return self._messages

    def settle(self) -> list[str]:
        """The broker has all that was published: forget what is gone. The topics that were cleared, once."""
        if self._settled or not self._begun or self._due_s < float("inf"):
            return []
        self._settled = True
        _write(self._memory, self._new)
        return self._gone

    def hear(self, topic: str, payload: bytes) -> None:
        """A message of somebody else."""
        now_s = time.monotonic()
        if topic == self._birth:
            if payload == b"online" and self._due_s == float("inf"):
                self._due_s = max(now_s + random.uniform(0.0, BIRTH_S), self._told_s + BIRTH_S)
        elif (what := self._commands.get(topic)) and (on := asked(payload)) is not None:
            with self._lock:
                self._wishes[what] = on
        elif now_s - self._ignored_s >= SAY_S:
            self._ignored_s = now_s
            why = f"{payload[:SHOWN]!r} is no number from {LOWEST} to 1" if what else "there is no such threshold"
            log.warning("%s is ignored: %s", _printable(topic), why)

    def wishes(self) -> dict[tuple[str, str], float]:
        """Thresholds asked for since the last call, the newest of each source and label."""
        with self._lock:
            wishes, self._wishes = self._wishes, {}
        self._unsaid |= wishes
        if self._unsaid and time.monotonic() - self._said_s >= SAY_S:
            said = ", ".join(f"{source} {label} {on:g}" for (source, label), on in self._unsaid.items())
            log.info("thresholds set over MQTT, until the settings are read again: %s", said)
            self._said_s, self._unsaid = time.monotonic(), {}
        return wishes


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])


def _read(memory: Path) -> Announced:
    """What was announced before; nothing when nobody knows."""
    try:
        said = json.loads(memory.read_text(encoding="utf-8"))
        return {str(topic): {str(key): str(platform) for key, platform in keys.items()} for topic, keys in said.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s: what Home Assistant was told before cannot be read (%s)", memory, error)
        return {}


def _write(memory: Path, said: Announced) -> None:
    """For the next start; without a disk to write on, what is gone by then stays in Home Assistant."""
    try:
        if not said:
            memory.unlink(missing_ok=True)
            return
        memory.parent.mkdir(parents=True, exist_ok=True)
        new = memory.with_name(memory.name + ".new")
        new.write_text(json.dumps(said), encoding="utf-8")
        new.replace(memory)
    except OSError as error:
        log.warning("%s: what Home Assistant was told cannot be written (%s)", memory, error)
