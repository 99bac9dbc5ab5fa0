"""What goes over a connection: states and levels as they are now, and the outbox from its oldest event to its newest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping

from paho.mqtt.reasoncodes import ReasonCode

from detector.publish.link import Link
from detector.publish.outbox import Message, Outbox

REFUSED_S = 60.0
"""When what the broker refused is offered again: somebody may have changed its access list."""
AGAIN_S = 10.0
"""When the outbox is gone through from its beginning again, should anything be left in it: a disk may come back late."""
AT_ONCE = 100
"""Rows read of the outbox in one go."""
MOST_CHANGES = 10_000
"""State changes kept for a broker that is slow; past it only the newest states count, as without a connection."""


class States:
    """Retained states and passing levels, left by the daemon's thread for the connection's. Topics are full ones.

    While there is a connection every change goes out in order; without one only what holds at its next begin.
    """

    def __init__(self, online: tuple[str, str]) -> None:
        """online: the topic and payload that say that we are there, first on every connection."""
        self._online = online
        self._lock = threading.Lock()
        self._retained: dict[str, str] = {}
        self._levels: dict[str, str] = {}
        self._changes: deque[tuple[str, str]] | None = None
        self._all_at_s = float("inf")

    def put(self, topic: str, payload: str) -> None:
        """This holds from now on."""
        with self._lock:
            if self._retained.get(topic) != payload:
                self._retained[topic] = payload
                self._tell([(topic, payload)])

    def put_again(self, states: Mapping[str, str]) -> None:
        """These hold, and are told even if they did before."""
        with self._lock:
            self._retained |= states
            self._tell(states.items())

    def say_online(self) -> None:
        """Once more."""
        with self._lock:
            self._tell([self._online])

    def forget(self, topics: Iterable[str]) -> None:
        """Nobody needs to be told of these any more."""
        with self._lock:
            for topic in topics:
                self._retained.pop(topic, None)

    def level(self, topic: str, payload: str) -> None:
        """Only the newest of a topic counts."""
        with self._lock:
            self._levels[topic] = payload

    def begin(self) -> None:
        """A connection: all there is has to be told."""
        with self._lock:
            self._changes, self._all_at_s = self._all(), float("inf")

    def end(self) -> None:
        with self._lock:
            self._changes = None

    def refused(self) -> None:
        """The broker did not take one: all are offered again later."""
        self._all_at_s = time.monotonic() + REFUSED_S

    @property
    def told(self) -> bool:
        """Whether nothing is left to tell."""
        return not self._changes and self._all_at_s == float("inf")

    @property
    def handed_over(self) -> bool:
        """Whether every change so far was given to the connection."""
        return not self._changes

    def take(self, room: int) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """At most `room` changes, and all levels."""
        with self._lock:
            assert self._changes is not None
            if len(self._changes) == MOST_CHANGES or time.monotonic() > self._all_at_s:  # some were pushed out, or refused
                self._changes, self._all_at_s = self._all(), float("inf")
            changes = [self._changes.popleft() for _ in range(min(room, len(self._changes)))]
            levels, self._levels = self._levels, {}
        return changes, levels

    def _tell(self, states: Iterable[tuple[str, str]]) -> None:
        if self._changes is not None:
            self._changes.extend(states)

    def _all(self) -> deque[tuple[str, str]]:
        return deque([self._online, *self._retained.items()], maxlen=MOST_CHANGES)


class Delivery:
    """How far one connection is. One thread uses it."""

    def __init__(self, link: Link, states: States, outbox: Outbox) -> None:
        self._link, self._states, self._outbox = link, states, outbox
        self._last_id = 0  # of the newest event looked at
        self._held: dict[str, float] = {}  # topics that the broker refuses, until when
        self._again_s = 0.0
        states.begin()

    @property
    def done(self) -> bool:
        """Whether all that waits was sent and answered."""
        return self._link.idle and self._states.handed_over and not self._outbox.after(self._last_id, 1)

    def send(self) -> None:
        """Hand over to the network what has come up since, as far as there is room."""
        changes, levels = self._states.take(self._link.room)
        for topic, payload in changes:
            self._link.state(topic, payload)
        for topic, payload in levels.items():
            self._link.level(topic, payload)
        self._send_events()

    def take_answers(self) -> tuple[int, list[tuple[Message | None, ReasonCode]]]:
        """How many events the broker has taken since, and what it has refused: an event, which stays in the outbox, or a state."""
        answers, self._link.answers = self._link.answers, []
        taken = [message for message, reason in answers if message and not reason.is_failure]
        if taken:
            self._outbox.done(taken)
        refused = [(message, reason) for message, reason in answers if reason.is_failure]
        for message, _ in refused:
            if message:
                self._held[message.topic] = time.monotonic() + REFUSED_S
            else:
                self._states.refused()
        return len(taken), refused

    def _send_events(self) -> None:
        now_s = time.monotonic()
        while (room := self._link.room) and (messages := self._outbox.after(self._last_id, AT_ONCE if self._held else room)):
            for message in messages:
                if not self._link.room:
                    return
                self._last_id = message.id
                if self._held.get(message.topic, 0.0) <= now_s:
                    self._link.event(message, self._outbox.left_s(message))
        if self._link.idle and now_s >= self._again_s:
            self._last_id = 0
            self._again_s = now_s + (1.1 * REFUSED_S if self._held else AGAIN_S)
