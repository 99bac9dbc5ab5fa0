"""MQTT: events from the outbox, at least once and in order; states and levels as they are now; `offline` as the will.

A thread of its own holds the connection, again and again. It takes what the daemon left for it, and no trouble of the network
reaches the daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.errors import ConfigError, TryAgainError, UrbandetectError
from detector.event import encode
from detector.publish import login
from detector.publish.link import IDLE_S, Link, LinkLost
from detector.publish.outbox import Message, Outbox

log = logging.getLogger(__name__)

RECONNECT_S = (1.0, 30.0)
"""After a failure the next try comes so late, doubling to the longer, with jitter: a broker that is back is not stormed."""
BRIEF_S = 5.0
"""A connection lost within it was hardly one: often that is all one sees of another client with the same id."""
REFUSED_S = 60.0
"""When what the broker refused is offered again: somebody may have changed its access list."""
REFUSED_IN_A_ROW = 100
"""So many refusals, and the rest of the queue waits as well."""
STATES = 10_000
"""State changes kept for a connected broker that is slow; past it only the newest states count, as without a connection."""
LAST_WORDS_S = 1.0
"""How long a stop waits for the broker ..."""
PATIENCE_S = 5.0
"""... and one that is patient, from each answer to the next."""
STUCK_S = 120.0
"""A connection attempt may take a minute, most of it the name server's; a thread that is silent for longer hangs."""
SAY_S = 60.0
"""A warning of one kind at most so often: an outage lasts longer than anyone wants to read of it."""
ANOTHER = "another client uses the same client id: give each its own mqtt.client_id"


class Mqtt:
    """Publishes under `root/node`. Every method is called by the daemon's thread; `failure`: why the daemon must end."""

    def __init__(self, settings: MqttSettings, node: str, outbox: Outbox) -> None:
        """Raises ConfigError for a password or certificate that cannot be read."""
        login.password(settings), login.tls(settings)
        self.failure: UrbandetectError | None = None
        self._settings, self._node, self._outbox = settings, node, outbox
        self._base = f"{settings.root}/{node}"
        self._lock = threading.Lock()
        self._retained: dict[str, str] = {}
        self._changes: deque[tuple[str, str]] | None = None  # of the retained, while there is a connection
        self._levels: dict[str, str] = {}
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._beat_s = time.monotonic()
        self._stop_s = float("inf")
        self._patient: Callable[[], bool] = lambda: False
        self._renew = False
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._connections = self._refused = self._brief = 0
        self._last_id = self._refused_in_a_row = 0
        self._go_back, self._hold_until_s = False, 0.0
        self._trouble, self._denied = "connecting", False
        self._said_s: dict[str, float] = {}

    def start(self) -> None:
        """Connect in the background, for ever."""
        self._thread.start()

    def event(self, event: dict[str, Any]) -> None:
        """Into the outbox: from here on it is lost by no crash and no outage."""
        self._outbox.put(f"{self._base}/{event['source']}/event", encode(event))
        self._ring()

    def label(self, source: str, label: str, on: bool) -> None:
        self._retain(f"{source}/label/{label}/state", "ON" if on else "OFF")

    def source(self, source: str, hearing: bool) -> None:
        self._retain(f"{source}/status", "online" if hearing else "no_audio")

    def level(self, source: str, level: dict[str, Any]) -> None:
        with self._lock:
            self._levels[f"{source}/level"] = json.dumps(level)
        self._ring()

    def health(self, health: dict[str, Any]) -> None:
        self._retain("health", json.dumps(health))

    def use(self, settings: MqttSettings) -> None:
        """Connect anew, as these settings say. Raises ConfigError, and goes on as before, when they cannot be used."""
        login.password(settings), login.tls(settings)
        self._settings, self._renew = settings, True
        self._ring()

    def status(self) -> str:
        """In a few words, for people."""
        host, port = self._settings.address
        waiting = self._outbox.stock().messages
        return f"{host}:{port} {self._trouble or 'connected'}" + (f", {waiting} events wait" if waiting else "")

    def facts(self) -> dict[str, Any]:
        """For `health`."""
        stock = self._outbox.stock()
        return {
            "mqtt": {
                "connected": not self._trouble,
                "protocol": "5" if self._protocol is MQTTProtocolVersion.MQTTv5 else "3.1.1",
                "connections": self._connections,
                "refused": self._refused,
            },
            "outbox": {
                "messages": stock.messages,
                "bytes": stock.size_bytes,
                "oldest_s": round(stock.oldest_s),
                "dropped": stock.dropped,
                "trouble": stock.trouble,
            },
        }

    def hangs(self) -> bool:
        """Whether the connection's thread has given no sign of life for too long."""
        return time.monotonic() - self._beat_s > STUCK_S

    def stop(self, patient: Callable[[], bool]) -> None:
        """Say `offline` and go. While `patient()`, wait for the broker to take all that waits; `failure` says if it did not."""
        self._patient, self._stop_s = patient, time.monotonic()
        self._ring()
        hurry_s = float("inf")
        while self._thread.is_alive() and not self.hangs() and time.monotonic() - hurry_s < 3 * LAST_WORDS_S:
            self._thread.join(0.05)
            if not patient():
                hurry_s = min(hurry_s, time.monotonic())
        if waiting := self._outbox.stock().messages:
            why = f"{self._trouble or 'slow'}; {waiting} events wait in the outbox and are sent when urbandetect runs again"
            if patient() and not self.failure:
                self.failure = (ConfigError if self._denied else TryAgainError)(self._where, why)
            else:
                log.warning("%s: %s", self._where, why)
        self._outbox.close()

    @property
    def _where(self) -> str:
        host, port = self._settings.address
        return f"mqtt {host}:{port}"

    def _retain(self, topic: str, payload: str) -> None:
        with self._lock:
            if self._retained.get(topic) == payload:
                return
            self._retained[topic] = payload
            if self._changes is not None:
                self._changes.append((topic, payload))
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been rung often enough
            self._bell.send(b"!")

    # What follows runs in the connection's thread.

    def _run(self) -> None:
        try:
            pause_s = RECONNECT_S[0]
            while True:
                self._beat_s = began_s = time.monotonic()
                link = self._connection()
                self._trouble = self._trouble or "connection lost"
                left = link is not None and link.left
                if time.monotonic() >= self._stop_s and (left or began_s >= self._stop_s or not self._patient()):
                    return
                if self._renew:
                    continue
                if link and link.up and time.monotonic() - link.began_s > BRIEF_S:
                    pause_s = RECONNECT_S[0]
                if link and link.lost and link.lost.value == login.TAKEN_OVER:
                    pause_s = RECONNECT_S[1]  # else the two take turns for ever
                self._wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, RECONNECT_S[1])
        except Exception as error:  # noqa: BLE001 - the daemon ends with it: a thread that died silently helps nobody
            self.failure = UrbandetectError(self._where, f"internal error: {type(error).__name__}: {error}")

    def _wait(self, seconds: float) -> None:
        """For a stop or new settings, at most so long."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and time.monotonic() < self._stop_s and not self._renew:
            self._beat_s = time.monotonic()
            select.select([self._ear], [], [], min(left_s, IDLE_S))
            self._hush()

    def _hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)

    def _connection(self) -> Link | None:
        """From CONNECT to the end of the connection, whatever ends it; None when there was none."""
        self._renew, link = False, None
        try:
            link = Link(self._settings, self._node, self._protocol)
            while not link.over:
                self._beat_s = time.monotonic()
                if link.up:
                    self._send(link)
                    if self._leaving(link) and link.goodbye(LAST_WORDS_S):
                        break
                link.network(self._ear)
                self._hush()
                self._take_answers(link)
            if not link.left:
                self._explain(link)
        except LinkLost as lost:
            self._fail("lost", f"{lost}")
        except ConfigError as error:
            self._fail("settings", f"{error}")
        except Exception as error:  # noqa: BLE001 - of the network, and of paho when what comes is no MQTT
            self._fail(type(error).__name__, login.failure(error))
        finally:
            with self._lock:
                self._changes = None
        return link

    def _send(self, link: Link) -> None:
        """Hand over to the network what has come up since."""
        if self._changes is None:
            self._begin(link)
        with self._lock:
            assert self._changes is not None
            if len(self._changes) == STATES:  # some have been pushed out
                self._changes = deque(self._retained.items(), maxlen=STATES)
            changes = [self._changes.popleft() for _ in range(min(link.room, len(self._changes)))]
            levels, self._levels = self._levels, {}
        for topic, payload in changes:
            link.state(topic, payload)
        for topic, payload in levels.items():
            link.level(topic, payload)
        self._send_events(link)

    def _begin(self, link: Link) -> None:
        self._connections += 1
        self._trouble, self._denied = "", False
        self._last_id, self._refused_in_a_row, self._go_back, self._hold_until_s = 0, 0, False, 0.0
        waiting = self._outbox.stock().messages
        log.info("%s: connected%s", self._where, f", {waiting} events wait" if waiting else "")
        link.state("status", "online")
        with self._lock:
            self._changes = deque(self._retained.items(), maxlen=STATES)

    def _send_events(self, link: Link) -> None:
        now_s = time.monotonic()
        if not link.room or now_s < self._hold_until_s:
            return
        messages = self._outbox.after(self._last_id, link.room)
        if not messages and self._go_back and link.idle:  # through to the end: offer again what was refused, but not at once
            self._last_id, self._go_back, self._hold_until_s = 0, False, now_s + REFUSED_S
        for message in messages:
            link.event(message, self._outbox.left_s(message))
            self._last_id = message.id

    def _take_answers(self, link: Link) -> None:
        answers, link.answers = link.answers, []
        taken = [message for message, reason in answers if message and not reason.is_failure]
        if taken:
            self._refused_in_a_row = 0
            self._outbox.done(taken)
        for message, reason in answers:
            if reason.is_failure:
                self._refuse(message, reason)

    def _refuse(self, message: Message | None, reason: ReasonCode) -> None:
        """The broker took a message and said no: an event stays in the outbox and is offered again later."""
        what = message.topic if message else "a state"
        hint = "check its access list" if reason.value == login.NOT_AUTHORIZED else "see its log"
        kept = "; it stays in the outbox" if message else ""
        self._say(f"refused {reason.value}", f"the broker refuses {what} ({reason}){kept}; {hint}")
        self._refused += 1
        if message:
            self._go_back = True
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= REFUSED_IN_A_ROW:
                self._refused_in_a_row, self._hold_until_s = 0, time.monotonic() + REFUSED_S

    def _leaving(self, link: Link) -> bool:
        """Whether it is time to go: all is sent, or there is no more time for it, or the settings are others now."""
        now_s = time.monotonic()
        if now_s < self._stop_s:
            return self._renew
        if link.left or (link.idle and not self._changes and not self._outbox.after(self._last_id, 1)):
            return True
        return now_s > (max(self._stop_s, link.progress_s) + PATIENCE_S if self._patient() else self._stop_s + LAST_WORDS_S)

    def _explain(self, link: Link) -> None:
        """Say why a connection came to nothing, and choose how the next one is tried."""
        if link.refused is not None and link.refused.value != login.UNSUPPORTED_VERSION:
            self._denied = link.refused.value in login.WHO_WE_ARE
            self._fail(f"refused {link.refused.value}", f"refused: {login.refusal(link.refused)}")
        elif not link.up:  # refused for its version, or closed without a word, as by brokers that know no MQTT 5
            self._protocol = MQTTProtocolVersion.MQTTv311 if link.v5 else MQTTProtocolVersion.MQTTv5
            self._trouble = "the broker closes the connection; are mqtt.port, mqtt.tls and the certificates right?"
            if not link.v5:
                self._fail("closed", self._trouble)
        elif link.lost is not None and link.lost.value == login.TAKEN_OVER:
            self._fail("taken over", ANOTHER)
        else:
            self._brief = self._brief + 1 if time.monotonic() - link.began_s < BRIEF_S else 0
            hint = f"; perhaps {ANOTHER}" if self._brief >= 2 else ""
            self._fail("brief" if hint else "lost", f"connection lost ({link.lost}){hint}")

    def _fail(self, kind: str, why: str) -> None:
        self._trouble = why
        self._say(kind, f"{why}; trying again")

    def _say(self, kind: str, text: str) -> None:
        now_s = time.monotonic()
        silent = now_s - self._said_s.get(kind, float("-inf")) < SAY_S
        if not silent:
            self._said_s[kind] = now_s
        log.log(logging.DEBUG if silent else logging.WARNING, "%s: %s", self._where, text)
