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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.errors import ConfigError, TryAgainError, UrbandetectError
from detector.event import encode
from detector.publish import login
from detector.publish.delivery import Delivery, States
from detector.publish.link import IDLE_S, Link, LinkLost
from detector.publish.outbox import Outbox

if TYPE_CHECKING:
    from detector.publish.announcer import Announcer

log = logging.getLogger(__name__)

RECONNECT_S = (1.0, 30.0)
"""After a failure the next try comes so late, doubling to the longer, with jitter: a broker that is back is not stormed."""
BRIEF_S = 5.0
"""A connection lost within it was hardly one: often that is all one sees of another client with the same id."""
LAST_WORDS_S = 1.0
"""How long a stop waits for the broker ..."""
PATIENCE_S = 5.0
"""... and one that is patient, from each answer to the next."""
STUCK_S = 120.0
"""A connection attempt may take a minute, most of it the name server's; a thread that is silent for longer hangs."""
SAY_S = 60.0
"""A warning of one kind at most so often: an outage lasts longer than anyone wants to read of it."""
ANOTHER = "another client uses the same client id: give each its own node, or mqtt.client_id"


class Mqtt:
    """Publishes under `root/node`. Every method is called by the daemon's thread; `failure`: why the daemon must end."""

    def __init__(self, settings: MqttSettings, node: str, outbox: Outbox, announcer: Announcer | None = None) -> None:
        """announcer: tells Home Assistant of us. Raises ConfigError for a password or certificate that cannot be read."""
        login.password(settings), login.tls(settings)
        self.failure: UrbandetectError | None = None
        self._settings, self._node, self._outbox, self._announcer = settings, node, outbox, announcer
        self._base = f"{settings.root}/{node}"
        self._states = States((f"{self._base}/status", "online"))
        self._bell, self._bell_heard = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_heard.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._beats = 0
        self._watched = (0, time.monotonic(), 0.0)
        self._stop_s = float("inf")
        self._patient: Callable[[], bool] = lambda: False
        self._renew = False
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._connections = self._accepted = self._refused = self._brief = 0
        self._trouble, self._denied = "connecting", False
        self._said_s: dict[str, float] = {}

    def start(self) -> None:
        """Connect in the background, for ever."""
        self._thread.start()

    def event(self, event: dict[str, Any]) -> None:
        """Into the outbox: from here on it is lost by no crash and no outage."""
        self._outbox.put(f"{self._base}/{event['source']}/event", encode(event))
        self._ring_bell()

    def label(self, source: str, label: str, on: bool) -> None:
        self._state(f"{self._base}/{source}/label/{label}/state", "ON" if on else "OFF")

    def source(self, source: str, hearing: bool) -> None:
        self._state(f"{self._base}/{source}/status", "online" if hearing else "no_audio")

    def level(self, source: str, level: dict[str, Any]) -> None:
        self._states.level(f"{self._base}/{source}/level", json.dumps(level))
        self._ring_bell()

    def health(self, health: dict[str, Any]) -> None:
        """And `online` once more: a will that comes late, or another client of our name, may have said otherwise."""
        mqtt = {key: value for key, value in health["mqtt"].items() if key != "connected"}  # who reads it there knows better
        self._state(f"{self._base}/health", json.dumps({**health, "mqtt": mqtt}))
        self._states.say_online()

    def threshold(self, source: str, label: str, on: float) -> None:
        if self._announcer and not self._announcer.off:
            self._state(f"{self._base}/{source}/threshold/{label}", f"{on:g}")

    def wishes(self) -> dict[tuple[str, str], float]:
        """Thresholds that somebody asked for since."""
        return self._announcer.wishes() if self._announcer else {}

    def use(self, settings: MqttSettings) -> None:
        """Connect anew, as these settings say, unless they are those in use and all is well.

        Raises ConfigError, and goes on as before, when they cannot be used.
        """
        login.password(settings), login.tls(settings)
        if settings != self._settings or self._trouble:
            self._settings, self._renew = settings, True
            self._ring_bell()

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
                "protocol": "5" if self._protocol is MQTTProtocolVersion.MQTTv5 else "3.1.1",
                "connected": not self._trouble,
                "connections": self._connections,
                "accepted": self._accepted,
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
        """Whether the connection's thread gives no sign of life; to be asked again and again.

        Only time in which somebody asked counts: when this process was stopped, that thread was as well.
        """
        now_s = time.monotonic()
        beats, looked_s, still_s = self._watched
        still_s = still_s + min(now_s - looked_s, IDLE_S) if beats == self._beats else 0.0
        self._watched = (self._beats, now_s, still_s)
        return still_s > STUCK_S

    def stop(self, patient: Callable[[], bool]) -> None:
        """Say `offline` and go. While `patient()`, wait for the broker to take all that waits; `failure` says if it did not."""
        self._patient, self._stop_s = patient, time.monotonic()
        self._ring_bell()
        hurry_s = float("inf")
        while self._thread.is_alive() and not self.hangs() and time.monotonic() - hurry_s < 3 * LAST_WORDS_S:
            self._thread.join(0.05)
            if not patient():
                hurry_s = min(hurry_s, time.monotonic())
        stock, lost = self._outbox.stock(), self._outbox.close()
        if stock.messages:
            waiting = stock.messages - lost
            ends = [f"{waiting} events wait in the outbox and are sent when urbandetect runs again"] if waiting else []
            ends += [f"{lost} events are lost, for the outbox could not keep them ({stock.trouble})"] if lost else []
            why = f"{self._trouble or 'slow'}; {', '.join(ends)}"
            error = (ConfigError if self._denied else TryAgainError)(
                self._where, why, "`urbandetect doctor` says more" if lost else ""
            )
            if patient() and not self.failure:
                self.failure = error
            else:
                log.log(logging.ERROR if lost else logging.WARNING, "%s", error)
        if not self._thread.is_alive():
            self._bell.close()
            self._bell_heard.close()

    @property
    def _where(self) -> str:
        host, port = self._settings.address
        return f"mqtt {host}:{port}"

    def _state(self, topic: str, payload: str) -> None:
        self._states.put(topic, payload)
        self._ring_bell()

    def _ring_bell(self) -> None:
        with contextlib.suppress(OSError):  # it has been rung often enough, or nobody listens any more
            self._bell.send(b"!")

    # What follows runs in the connection's thread.

    def _run(self) -> None:
        try:
            pause_s = RECONNECT_S[0]
            while True:
                self._beats += 1
                began_s = time.monotonic()
                link = self._connection()
                self._trouble = self._trouble or "connection lost"
                gone = link is not None and link.said_goodbye
                if time.monotonic() >= self._stop_s and (gone or began_s >= self._stop_s or not self._patient()):
                    return
                if self._renew or (link and not link.up and link.v5 and self._protocol is not MQTTProtocolVersion.MQTTv5):
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
            self._beats += 1
            select.select([self._bell_heard], [], [], min(left_s, IDLE_S))
            self._hush()

    def _hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell_heard.recv(4096)

    def _connection(self) -> Link | None:
        """From CONNECT to the end of the connection, whatever ends it; None when there was none."""
        self._renew, link = False, None
        try:
            link = Link(self._settings, self._node, self._protocol)
            delivery = None
            while not link.over:
                self._beats += 1
                if link.up:
                    delivery = delivery or self._begin(link)
                    if self._announcer:
                        self._announce(self._announcer, link)
                    delivery.send()
                    if self._leaving(link, delivery) and link.goodbye(LAST_WORDS_S):
                        break
                link.network(self._bell_heard)
                self._hush()
                if delivery:
                    self._take_answers(delivery)
            if not link.said_goodbye:
                self._judge(link)
        except LinkLost as lost:
            self._fail("lost", f"{lost}")
        except ConfigError as error:
            self._fail("settings", f"{error}")
        except Exception as error:  # of the network, and of paho when what comes is no MQTT
            log.debug("mqtt", exc_info=True)
            self._fail(type(error).__name__, login.failure(error))
        finally:
            self._states.end()
            if link:
                link.close()
        return link

    def _begin(self, link: Link) -> Delivery:
        self._connections += 1
        self._trouble, self._denied = "", False
        waiting = self._outbox.stock().messages
        how = "" if link.v5 else ", by MQTT 3.1.1"
        log.info("%s: connected%s%s", self._where, how, f", {waiting} events wait" if waiting else "")
        if self._announcer and self._announcer.filters:
            link.subscribe(self._announcer.filters)
        return Delivery(link, self._states, self._outbox)

    def _take_answers(self, delivery: Delivery) -> None:
        taken, refused = delivery.take_answers()
        self._accepted, self._refused = self._accepted + taken, self._refused + len(refused)
        for message, reason in refused:
            what = f"{message.topic}; it stays in the outbox" if message else "a state"
            self._say(f"refused {reason.value}", f"the broker refuses {what} ({reason}); {_hint(reason)}")

    def _announce(self, announcer: Announcer, link: Link) -> None:
        """Take what was heard, and tell Home Assistant what it should know now."""
        heard, link.heard = link.heard, []
        for topic, payload in heard:
            announcer.hear(topic, payload)
        if link.unheard:
            what = " and ".join(announcer.filters)
            self._say("unheard", f"the broker does not let us subscribe to {what}; {_hint(link.unheard)}")
            link.unheard = None
        if link.idle and self._states.told:
            self._states.forget(announcer.settle())
        self._states.put_again(announcer.due())

    def _leaving(self, link: Link, delivery: Delivery) -> bool:
        """Whether it is time to go: all is sent, or there is no more time for it, or the settings are others now."""
        now_s = time.monotonic()
        if now_s < self._stop_s:
            return self._renew
        if link.said_goodbye or delivery.done:
            return True
        return now_s > (max(self._stop_s, link.progress_s) + PATIENCE_S if self._patient() else self._stop_s + LAST_WORDS_S)

    def _judge(self, link: Link) -> None:
        """Say why a connection came to nothing, and choose how the next one is tried."""
        protocol, self._protocol = self._protocol, MQTTProtocolVersion.MQTTv5
        if link.refused is not None and link.refused.value != login.UNSUPPORTED_VERSION:
            self._denied = link.refused.value in login.WHO_WE_ARE
            self._protocol = protocol
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


def _hint(reason: ReasonCode) -> str:
    return "check its access list" if reason.value == login.NOT_AUTHORIZED else "see its log"
