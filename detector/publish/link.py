"""One MQTT connection through paho, from CONNECT to its loss. One thread uses it."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.publish import login
from detector.publish.outbox import Message

KEEPALIVE_S = 30
WINDOW = 20
"""Messages under way at once; a broker may ask for fewer. Over a long line of 0.2 s that is still 100 a second."""
ACK_S = 10.0
"""A broker that answers nothing for so long is behind a line that has died silently."""
IDLE_S = 1.0
WITH_WILL = 4
"""Reason code of a disconnection after which the broker publishes the will: MQTT 5, section 3.14.2.1."""
UNSPECIFIED = 128


class LinkLost(Exception):
    """The connection is of no use any more."""


class Link:
    """up: the broker has let us in; refused: it has not, and why; lost: the connection is over, and why; answers: what it said of
    each message since somebody looked, None for a state; told: it has heard our goodbye; unheard: why it does not let us subscribe;
    heard: topics and payloads of what came, without what it had kept from before, since somebody looked."""

    def __init__(self, settings: MqttSettings, node: str, protocol: MQTTProtocolVersion) -> None:
        """Dial. Raises what dialling raises, and ConfigError for a password or certificate that cannot be read."""
        self.v5 = protocol is MQTTProtocolVersion.MQTTv5
        self.began_s = self.progress_s = time.monotonic()
        self.up = self.told = False
        self.refused: ReasonCode | None = None
        self.lost: ReasonCode | None = None
        self.answers: list[tuple[Message | None, ReasonCode]] = []
        self.unheard: ReasonCode | None = None
        self.heard: list[tuple[str, bytes]] = []
        self._base = f"{settings.root}/{node}"
        self._window = WINDOW
        self._under_way: dict[int, Message | None] = {}
        self._goodbye: int | None = None
        self._goodbye_s = 0.0
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id or f"urbandetect-{node}",
            protocol=protocol,
            reconnect_on_failure=False,
        )
        if settings.username:
            self._client.username_pw_set(settings.username, login.password(settings))
        if context := login.tls(settings):
            self._client.tls_set_context(context)
        self._client.will_set(f"{self._base}/status", "offline", qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.connect(*settings.address, KEEPALIVE_S)

    @property
    def over(self) -> bool:
        """Nothing will come of it any more."""
        return self.lost is not None or self.refused is not None

    @property
    def room(self) -> int:
        """How many messages may be sent now."""
        return max(0, self._window - len(self._under_way))

    @property
    def idle(self) -> bool:
        """Every message sent was answered."""
        return not self._under_way

    @property
    def said_goodbye(self) -> bool:
        return self._goodbye is not None

    def state(self, topic: str, payload: str) -> int:
        """Publish a retained state."""
        return self._publish(topic, payload, None, retain=True)

    def level(self, topic: str, payload: str) -> None:
        """Publish what may get lost."""
        self._client.publish(topic, payload)

    def event(self, message: Message, left_s: float) -> None:
        """Publish a message of the outbox that is worth delivering for so long."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        properties.MessageExpiryInterval = max(1, round(left_s))
        self._publish(message.topic, message.payload, message, properties=properties if self.v5 else None)

    def subscribe(self, filters: list[str]) -> None:
        """Hear what others publish to these topics; `heard` has it."""
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.subscribe([(topic, 1) for topic in filters])

    def network(self, bell: socket.socket) -> None:
        """Read and write what can be, or wait for that, for the bell or for a second. Raises LinkLost when nobody answers."""
        connection = self._client.socket()
        if connection is None:
            self.lost = self.lost or ReasonCode(PacketTypes.DISCONNECT, identifier=UNSPECIFIED)
            return
        pending = getattr(connection, "pending", lambda: 0)()  # TLS has read it already: no select will tell
        writing = [connection] if self._client.want_write() else []
        readable, writable, _ = select.select([connection, bell], writing, [], 0 if pending else IDLE_S)
        if connection in readable or pending:
            self._client.loop_read()
        if connection in writable and self._client.socket() is not None:
            self._client.loop_write()
        self._client.loop_misc()
        if (self._under_way or not self.up) and not self.over and time.monotonic() - self.progress_s > ACK_S:
            raise LinkLost(f"nothing acknowledged for {ACK_S:g} s" if self.up else f"no answer for {ACK_S:g} s")

    def goodbye(self, wait_s: float) -> bool:
        """Say `offline`, and leave when it was heard or after so long; True when we have left."""
        if self._goodbye is None:
            self._goodbye, self._goodbye_s = self.state(f"{self._base}/status", "offline"), time.monotonic()
        if not self.told and time.monotonic() - self._goodbye_s < wait_s:
            return False
        will = None if self.told or not self.v5 else ReasonCode(PacketTypes.DISCONNECT, identifier=WITH_WILL)
        with contextlib.suppress(OSError):
            self._client.disconnect(will)
        return True

    def close(self) -> None:
        """Let go of the socket and of paho, which knows us as we know it: else both wait for Python's collector."""
        self._client.on_connect = self._client.on_disconnect = self._client.on_publish = None
        self._client.on_message = self._client.on_subscribe = None
        if connection := self._client.socket():
            connection.close()

    def _publish(self, topic: str, payload: str, message: Message | None, **how: Any) -> int:
        if not self._under_way:  # the broker owes us an answer from now on
            self.progress_s = time.monotonic()
        sent = self._client.publish(topic, payload, qos=1, **how)
        self._under_way[sent.mid] = message
        return sent.mid

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self.refused = reason
        else:
            self.up = True
            self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self.lost = self.lost or reason

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        self.unheard = next((reason for reason in reasons if reason.is_failure), None)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if not message.retain:
            self.heard.append((message.topic, bytes(message.payload)))

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        if mid in self._under_way:  # else it is a level, which the broker does not answer
            self.progress_s = time.monotonic()
            self.told = self.told or mid == self._goodbye
            self.answers.append((self._under_way.pop(mid), reason))
