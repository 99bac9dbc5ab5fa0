"""MQTT 5 through paho: events at least once, states retained, the will says `offline` when nobody else can."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.errors import ConfigError, TryAgainError, UrbandetectError
from detector.event import encode

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
QUEUE = 10_000
"""Events kept in memory while the broker is away: hours of a busy street; beyond it the newest are dropped and counted."""
LAST_WORDS_S = 1.0
"""How long a stop waits for the broker: for everything when someone waits for us, else for each next acknowledgement."""
WITH_WILL = 4
"""Reason code of a disconnection after which the broker publishes the will: MQTT 5, section 3.14.2.1."""
REFUSALS = {
    134: "the user name or password is wrong",
    135: "the user name or password is wrong, or this user may not connect",
    138: "this client is banned",
}


def read_password(path: str) -> str | None:
    """The first line of the password file; None without one. Raises ConfigError when it cannot be read."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "the MQTT password file cannot be read", "check mqtt.password_file and its permissions") from error


class Mqtt:
    """Publishes under `root/node`. Methods are called by one thread; the network has its own.

    failure: set when the very first connection is refused for who we are; the daemon ends with it. Later refusals are retried.
    dropped: events that found no place to wait, or that the broker took and refused.
    """

    def __init__(self, settings: MqttSettings, node: str) -> None:
        self.failure: UrbandetectError | None = None
        self.dropped = 0
        self._where = f"{settings.host}:{settings.port}"
        self._settings = settings
        self._base = f"{settings.root}/{node}"
        self._retained: dict[str, str] = {}
        self._waiting: set[int] = set()
        self._answers: deque[tuple[int, ReasonCode]] = deque()
        self._lock = threading.Lock()
        self._connected_once = self._stopping = False
        self._said_s = float("-inf")
        self._acknowledged = (0, float("-inf"))
        password = read_password(settings.password_file)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=settings.client_id or f"urbandetect-{node}", protocol=paho.MQTTv5
        )
        if settings.username:
            self._client.username_pw_set(settings.username, password)
        self._client.will_set(f"{self._base}/status", "offline", qos=1, retain=True)
        self._client.max_queued_messages_set(0)  # states always find a place; `event` counts its own
        self._client.max_inflight_messages_set(1)  # in order: what an outage held back never overtakes what is newer
        self._client.reconnect_delay_set(1, 30)
        self._client.suppress_exceptions = True
        self._client.on_log = self._on_log
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_publish = self._on_publish

    def start(self) -> None:
        """Connect in the background, for ever; nothing is lost meanwhile."""
        self._client.connect_async(self._settings.host, self._settings.port, KEEPALIVE_S)
        self._client.loop_start()

    def event(self, event: dict[str, Any]) -> None:
        """Queue one event, QoS 1; it waits for the broker as long as it must."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        self._take_answers()
        if len(self._waiting) >= QUEUE:
            self._drop(f"the broker is away and {QUEUE} events wait already")
            return
        sent = self._client.publish(f"{self._base}/{event['source']}/event", encode(event), qos=1, properties=properties)
        self._waiting.add(sent.mid)

    def label(self, source: str, label: str, on: bool) -> None:
        self._retain(f"{source}/label/{label}/state", "ON" if on else "OFF")

    def source(self, source: str, hearing: bool) -> None:
        self._retain(f"{source}/status", "online" if hearing else "no_audio")

    def level(self, source: str, level: dict[str, Any]) -> None:
        if self._client.is_connected():
            self._client.publish(f"{self._base}/{source}/level", json.dumps(level), qos=0)

    def health(self, health: dict[str, Any]) -> None:
        self._retain("health", json.dumps(health))

    def stop(self, patient: bool) -> None:
        """Say `offline` and go. patient: wait for what is under way as long as the broker takes it; failure says if it did not."""
        self._stopping, refused = True, self.failure is not None
        last = self._client.publish(f"{self._base}/status", "offline", qos=1, retain=True)
        since_s = time.monotonic()
        while self._acknowledged[0] != last.mid and not self.failure and time.monotonic() - since_s <= LAST_WORDS_S:
            time.sleep(0.005)
            if patient:
                since_s = max(since_s, self._acknowledged[1])
        self._take_answers()
        if self._waiting and not self.failure:
            lost = f"{len(self._waiting)} events were not taken and are lost"
            log.warning("mqtt %s: %s", self._where, lost)
            if patient:
                self.failure = TryAgainError(f"mqtt {self._where}", lost, "is the broker running?")
        if self._client.is_connected() or refused:  # else its thread may wait for the network; it ends with the program
            told = self._acknowledged[0] == last.mid
            self._client.disconnect(None if told else ReasonCode(PacketTypes.DISCONNECT, identifier=WITH_WILL))
            self._client.loop_stop()

    def _retain(self, topic: str, payload: str) -> None:
        """Only the newest counts: sent now when connected, else on the next connection."""
        with self._lock:
            if self._retained.get(topic) == payload:
                return
            self._retained[topic] = payload
            if self._client.is_connected():
                self._client.publish(f"{self._base}/{topic}", payload, qos=1, retain=True)

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            why = REFUSALS.get(reason.value, str(reason))
            if reason.value in REFUSALS and not self._connected_once:
                self.failure = ConfigError(
                    f"mqtt {self._where}", f"refused: {why}", "check mqtt.username and mqtt.password_file, or the broker's users"
                )
                return
            self._say(f"mqtt {self._where}: refused: {why}; trying again")
            return
        if self._stopping:  # `offline` is on its way already
            return
        self._connected_once = True
        log.info("mqtt %s: connected", self._where)
        with self._lock:
            client.publish(f"{self._base}/status", "online", qos=1, retain=True)
            for topic, payload in self._retained.items():
                client.publish(f"{self._base}/{topic}", payload, qos=1, retain=True)

    def _on_log(self, _client: Any, _data: Any, _level: int, text: str) -> None:
        if text.startswith("Caught exception"):  # in one of our callbacks; the rest of what paho says is its own affair
            log.error("mqtt %s: %s", self._where, text)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure and self._connected_once:
            hint = "; another client uses the same client id" if reason.value == 142 else ""
            self._say(f"mqtt {self._where}: connection lost ({reason}){hint}; trying again")

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        """Takes no lock: paho calls this holding one that `publish` needs."""
        self._acknowledged = (mid, time.monotonic())
        self._answers.append((mid, reason))

    def _take_answers(self) -> None:
        """Which events are no longer waiting; called by the publishing thread, so that none is answered before it is noted."""
        while self._answers:
            mid, reason = self._answers.popleft()
            if mid in self._waiting and reason.is_failure:
                self._drop(f"the broker refused an event ({reason})")
            self._waiting.discard(mid)

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        self._say(f"mqtt {self._where}: no broker answers; trying again, events wait in memory")

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self._say(f"mqtt {self._where}: {why}; {self.dropped} lost so far")

    def _say(self, text: str) -> None:
        """A warning at most once a minute: an outage lasts longer than anyone wants to read of it."""
        now = time.monotonic()
        if now - self._said_s >= 60:
            self._said_s = now
            log.warning("%s", text)
