"""MQTT through paho: events from the outbox, at least once and in order; states and levels as they are now; `offline` as the will.

One thread of its own holds the connection. It takes what the daemon left for it, and no trouble of the network reaches the daemon.
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
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.errors import ConfigError, TryAgainError, UrbandetectError
from detector.event import encode
from detector.publish import login
from detector.publish.outbox import Message, Outbox

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
RECONNECT_S = (1.0, 30.0)
"""After a failure the next try comes so late, doubling to the longer, with jitter: a broker that is back is not stormed."""
WINDOW = 20
"""Messages under way at once; a broker may ask for fewer. Over a long line of 0.2 s that is still 100 events a second."""
ACK_S = 10.0
"""A broker that acknowledges nothing for so long is behind a link that has died silently."""
REFUSED_S = 60.0
"""When what the broker refused is offered again: somebody may have changed its access list."""
REFUSED_IN_A_ROW = 100
"""So many refusals, and the rest of the queue waits as well."""
STATES = 10_000
"""State changes kept for a connected broker that is slow; past it only the newest states count, as without a connection."""
LAST_WORDS_S = 1.0
"""How long a stop waits for the broker; one that is patient, as long as events are taken within five of it."""
IDLE_S = 1.0
SAY_S = 60.0
"""A warning of one kind at most so often: an outage lasts longer than anyone wants to read of it."""
BRIEF_S = 5.0
"""A connection lost within it was hardly one: often that is all one sees of another client with the same id."""
STUCK_S = 120.0
"""A connection attempt may take a minute, most of it the name server's; a thread that is silent for longer hangs."""
ANOTHER = "another client uses the same client id: give each its own mqtt.client_id"
WITH_WILL = 4
"""Reason code of a disconnection after which the broker publishes the will: MQTT 5, section 3.14.2.1."""


class _Lost(Exception):
    """The connection is of no use any more."""


@dataclass
class _Link:
    """One connection, from CONNECT to its loss.

    last_id: of the newest event handed to the network; under_way: by paho's message id, None for a state; go_back: something was
    refused, so begin again at the oldest event when all are through; goodbye: the message id of `offline`; told: it was taken.
    """

    client: paho.Client
    protocol: MQTTProtocolVersion
    began_s: float = field(default_factory=time.monotonic)
    up: bool = False
    refused: ReasonCode | None = None
    lost: ReasonCode | None = None
    window: int = WINDOW
    last_id: int = 0
    under_way: dict[int, Message | None] = field(default_factory=dict)
    acknowledged: list[Message] = field(default_factory=list)
    progress_s: float = field(default_factory=time.monotonic)
    refusals: int = 0
    go_back: bool = False
    hold_until_s: float = 0.0
    goodbye: int | None = None
    goodbye_s: float = 0.0
    told: bool = False


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
        self._changes: deque[tuple[str, str]] | None = None  # of the retained, while connected
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
                said_goodbye = link is not None and link.goodbye is not None
                if time.monotonic() >= self._stop_s and (said_goodbye or began_s >= self._stop_s or not self._patient()):
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

    def _connection(self) -> _Link | None:
        """From CONNECT to the end of the connection, whatever ends it; None when there was none."""
        self._renew, settings = False, self._settings
        link = None
        try:
            link = self._dial(settings)
            while not link.lost and not link.refused:
                self._beat_s = time.monotonic()
                if link.up:
                    self._send(link)
                    if self._goodbye(link):
                        break
                self._network(link)
                self._settle(link)
            self._explain(link)
        except _Lost as lost:
            self._fail("lost", f"{lost}")
        except ConfigError as error:
            self._fail("settings", f"{error}")
        except Exception as error:  # noqa: BLE001 - of the network, and of paho when what comes is no MQTT
            self._fail(type(error).__name__, login.failure(error))
        finally:
            with self._lock:
                self._changes = None
            if link:
                self._settle(link)
        return link

    def _dial(self, settings: MqttSettings) -> _Link:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id or f"urbandetect-{self._node}",
            protocol=self._protocol,
            reconnect_on_failure=False,
        )
        if settings.username:
            client.username_pw_set(settings.username, login.password(settings))
        if context := login.tls(settings):
            client.tls_set_context(context)
        client.will_set(f"{self._base}/status", "offline", qos=1, retain=True)
        client.max_queued_messages_set(0)
        link = _Link(client, self._protocol)

        def connected(_client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
            if reason.is_failure:
                link.refused = reason
                return
            link.up = True
            link.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))

        def disconnected(_client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
            link.lost = link.lost or reason

        def published(_client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
            link.progress_s = time.monotonic()
            link.told = link.told or mid == link.goodbye
            message = link.under_way.pop(mid, None)
            if reason.is_failure:
                self._refuse(link, message, reason)
            elif message:
                link.refusals = 0
                link.acknowledged.append(message)

        client.on_connect, client.on_disconnect, client.on_publish = connected, disconnected, published
        client.connect(*settings.address, KEEPALIVE_S)
        return link

    def _network(self, link: _Link) -> None:
        """Read and write what can be, and wait for something to do."""
        client = link.client
        connection = client.socket()
        if connection is None:
            link.lost = link.lost or ReasonCode(PacketTypes.DISCONNECT, identifier=128)
            return
        pending = getattr(connection, "pending", lambda: 0)()
        writing = [connection] if client.want_write() else []
        readable, writable, _ = select.select([connection, self._ear], writing, [], 0 if pending else IDLE_S)
        self._hush()
        if connection in readable or pending:
            client.loop_read()
        if connection in writable and client.socket() is not None:
            client.loop_write()
        client.loop_misc()
        if link.under_way and time.monotonic() - link.progress_s > ACK_S:
            raise _Lost(f"nothing acknowledged for {ACK_S:g} s")
        if not link.up and time.monotonic() - link.progress_s > ACK_S:
            raise _Lost(f"no answer for {ACK_S:g} s")

    def _hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)

    def _send(self, link: _Link) -> None:
        """Hand over to the network what has come up since."""
        if self._changes is None:
            self._connected(link)
        with self._lock:
            assert self._changes is not None
            if len(self._changes) == STATES:  # some have been pushed out
                self._changes = deque(self._retained.items(), maxlen=STATES)
            room = max(0, link.window - len(link.under_way))
            changes = [self._changes.popleft() for _ in range(min(room, len(self._changes)))]
            levels, self._levels = self._levels, {}
        for topic, payload in changes:
            self._state(link, topic, payload)
        for topic, payload in levels.items():
            link.client.publish(f"{self._base}/{topic}", payload)
        self._send_events(link)

    def _state(self, link: _Link, topic: str, payload: str) -> int:
        self._begin(link)
        sent = link.client.publish(f"{self._base}/{topic}", payload, qos=1, retain=True)
        link.under_way[sent.mid] = None
        return sent.mid

    def _connected(self, link: _Link) -> None:
        self._connections += 1
        self._trouble, self._denied = "", False
        waiting = self._outbox.stock().messages
        log.info("%s: connected%s", self._where, f", {waiting} events wait" if waiting else "")
        self._state(link, "status", "online")
        with self._lock:
            self._changes = deque(self._retained.items(), maxlen=STATES)

    def _send_events(self, link: _Link) -> None:
        now_s = time.monotonic()
        room = link.window - len(link.under_way)
        if room <= 0 or now_s < link.hold_until_s:
            return
        messages = self._outbox.after(link.last_id, room)
        if not messages and link.go_back and not link.under_way:
            link.last_id, link.go_back, link.hold_until_s = 0, False, now_s + REFUSED_S
        for message in messages:
            self._begin(link)
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            properties.MessageExpiryInterval = max(1, round(self._outbox.left_s(message)))
            new = properties if link.protocol is MQTTProtocolVersion.MQTTv5 else None
            sent = link.client.publish(message.topic, message.payload, qos=1, properties=new)
            link.under_way[sent.mid] = message
            link.last_id = message.id

    @staticmethod
    def _begin(link: _Link) -> None:
        """The broker owes us an answer from now on."""
        if not link.under_way:
            link.progress_s = time.monotonic()

    def _refuse(self, link: _Link, message: Message | None, reason: ReasonCode) -> None:
        """The broker took a message and said no: an event stays in the outbox and is offered again later."""
        what = message.topic if message else "a state"
        hint = "check its access list" if reason.value == login.NOT_AUTHORIZED else "see its log"
        kept = "; it stays in the outbox" if message else ""
        self._say(f"refused {reason.value}", f"the broker refuses {what} ({reason}){kept}; {hint}")
        self._refused += 1
        if message:
            link.go_back = True
            link.refusals += 1
            if link.refusals >= REFUSED_IN_A_ROW:
                link.refusals, link.hold_until_s = 0, time.monotonic() + REFUSED_S

    def _settle(self, link: _Link) -> None:
        if link.acknowledged:
            self._outbox.done(link.acknowledged)
            link.acknowledged = []

    def _goodbye(self, link: _Link) -> bool:
        """Whether this connection has come to its proper end: all is sent, or the time for it is over, and `offline` is told."""
        now_s = time.monotonic()
        stopping = now_s >= self._stop_s
        if not (stopping or self._renew):
            return False
        if link.goodbye is None:
            patience_s = BRIEF_S if stopping and self._patient() else LAST_WORDS_S
            since_s = max(self._stop_s, link.progress_s) if stopping and self._patient() else self._stop_s
            idle = not link.under_way and not self._changes and not self._outbox.after(link.last_id, 1)
            if stopping and not idle and now_s - since_s < patience_s:
                return False
            link.goodbye = self._state(link, "status", "offline")
            link.goodbye_s = now_s
        if not link.told and now_s - link.goodbye_s < LAST_WORDS_S:
            return False
        link.client.disconnect(None if link.told or link.protocol is not MQTTProtocolVersion.MQTTv5 else _with_will())
        return True

    def _explain(self, link: _Link) -> None:
        """Say why a connection came to nothing, and choose how the next one is tried."""
        if link.goodbye is not None:
            return
        old = link.protocol is not MQTTProtocolVersion.MQTTv5
        if link.refused is not None and link.refused.value != login.UNSUPPORTED_VERSION:
            self._denied = link.refused.value in login.WHO_WE_ARE
            self._fail(f"refused {link.refused.value}", f"refused: {login.refusal(link.refused)}")
        elif not link.up:  # refused for its version, or closed without a word, as by brokers that know no MQTT 5
            self._protocol = MQTTProtocolVersion.MQTTv5 if old else MQTTProtocolVersion.MQTTv311
            self._trouble = "the broker closes the connection; are mqtt.port, mqtt.tls and the certificates right?"
            if old:
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


def _with_will() -> ReasonCode:
    return ReasonCode(PacketTypes.DISCONNECT, identifier=WITH_WILL)
