"""The way to the broker, step by step, each failure by its own cause; and what a daemon has left there about itself.

A visit is made under a client id of its own, without a will, and publishes nothing that lasts or that anyone subscribes to.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from detector.audio.devices import within
from detector.config import MqttSettings
from detector.doctor.check import Check, skipped
from detector.errors import ConfigError, Hang
from detector.publish import login

NAMES = NAME, TCP, TLS, LOGIN, PUBLISH = ("broker name", "broker tcp", "broker tls", "broker login", "broker publish")
DIAL_S = 5.0
ANSWER_S = 10.0
"""As long as the daemon waits for a broker's answer."""
ALERT_S = 0.3
"""TLS 1.3 has shaken hands before a broker looks for our certificate: its refusal comes so much later over a long line."""
RETAINED_S = 2.0
"""What is retained comes at once after the subscription."""
RENEW_DAYS = 14
PROTOCOLS = (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311)
OTHER_ID = 133


class _Stop(Exception):
    """A check has failed: what comes after it cannot be reached."""

    def __init__(self, check: Check) -> None:
        self.check = check


class Visit:
    """One connection, and what the broker said in it."""

    def __init__(self, mqtt: MqttSettings, node: str, protocol: MQTTProtocolVersion) -> None:
        """Dial and wait for the answer. Raises what dialling raises, and ConfigError for files that cannot be used."""
        self.up = False
        self.refused: ReasonCode | None = None
        self.lost = ""
        self.answers: dict[int, ReasonCode] = {}
        self.retained: dict[str, bytes] = {}
        self._errors: list[str] = []
        own_id = f"{mqtt.client_id or f'urbandetect-{node}'}-doctor"
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=own_id, protocol=protocol, reconnect_on_failure=False)
        if mqtt.username:
            self.client.username_pw_set(mqtt.username, login.password(mqtt))
        if context := login.tls(mqtt):
            self.client.tls_set_context(context)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_publish = lambda _client, _data, mid, reason, _properties: self.answers.update({mid: reason})
        self.client.on_message = lambda _client, _data, message: self.retained.update({message.topic: bytes(message.payload)})
        self.client.on_log = self._on_log
        self.client.connect(*mqtt.address)
        self.wait(lambda: self.up or self.refused is not None, ANSWER_S)

    def wait(self, done: Callable[[], object], within_s: float) -> bool:
        """Until that, the connection's end, or so long: whether it was that."""
        until_s = time.monotonic() + within_s
        while not done():
            if self.lost or time.monotonic() > until_s:
                return False
            if self.client.loop(0.1) and not self.lost:
                self.lost = "the connection was lost"
        return True

    def close(self) -> None:
        self.client.on_disconnect = None  # what was lost before stays said
        with contextlib.suppress(OSError):
            self.client.disconnect()
            if connection := self.client.socket():
                connection.close()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self.refused = reason
        else:
            self.up = True

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self.lost = self.lost or " ".join([f"{reason}".lower(), *self._errors])

    def _on_log(self, _client: Any, _data: Any, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._errors.append(text)


def examine(mqtt: MqttSettings, node: str) -> Iterator[Check]:
    """The five checks of NAMES."""
    if not mqtt.host:
        yield from skipped(NAMES, "no mqtt.host is set: events go to standard output")
        return
    done = 0
    try:
        check, addresses = _name(mqtt)
        yield check
        done += 1
        check, address = _tcp(mqtt, addresses)
        yield check
        done += 1
        yield _tls(mqtt, address)
        done += 1
        check, visit = _login(mqtt, node, address)
        yield check
        done += 1
        yield _publish(mqtt, node, visit)
    except _Stop as stop:
        yield stop.check
        yield from skipped(NAMES[done + 1 :], f"not reached: {NAMES[done]}")


def daemon_says(mqtt: MqttSettings, node: str) -> Mapping[str, Any] | None:
    """The `health` that a daemon of this node retains on the broker; None when none is online or nobody can be asked."""
    base = f"{mqtt.root}/{node}"
    if not mqtt.host:
        return None
    try:
        visit = _enter(mqtt, node)
    except Exception:  # noqa: BLE001 - whatever it is, the checks of the broker say it
        return None
    try:
        visit.client.subscribe([(f"{base}/status", 0), (f"{base}/health", 0)])
        if visit.up and visit.wait(lambda: len(visit.retained) == 2, RETAINED_S) and visit.retained[f"{base}/status"] == b"online":
            said = json.loads(visit.retained[f"{base}/health"])
            return said if isinstance(said, dict) else None
    except (OSError, ValueError):
        return None
    finally:
        visit.close()
    return None


def _name(mqtt: MqttSettings) -> tuple[Check, list[tuple[Any, ...]]]:
    host, port = mqtt.address
    try:
        found = within("the name server", lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except Hang:
        fix = "is the network up? try the broker's address in place of its name"
        raise _Stop(Check(NAME, "fail", f"{host}: the name server does not answer", fix)) from None
    except OSError as error:
        fix = "is mqtt.host spelt right, is the network up? try the broker's address in place of its name"
        raise _Stop(Check(NAME, "fail", f"{host}: not found by the name server ({error.strerror})", fix)) from None
    addresses = list(dict.fromkeys(entry[4][0] for entry in found))
    return Check(NAME, "ok", f"{host}: {', '.join(addresses)}"), found


def _tcp(mqtt: MqttSettings, addresses: list[tuple[Any, ...]]) -> tuple[Check, tuple[str, int]]:
    """The first address that answers: paho tries them in this order too."""
    troubles = []
    for *_, address in addresses:
        try:
            socket.create_connection(address[:2], DIAL_S).close()
        except ConnectionRefusedError:
            troubles.append(
                (address, "nothing listens there", "is the broker running, on this port, and not on its own computer alone?")
            )
        except TimeoutError:
            troubles.append((address, f"no answer in {DIAL_S:g} s", "is the broker's computer on, and no firewall between?"))
        except OSError as error:
            troubles.append((address, f"no way there ({(error.strerror or f'{error}').lower()})", "is the network up?"))
        else:
            what = f"{address[0]} port {address[1]} answers"
            others = "".join(f"; {other[0]}: {why}" for other, why, _ in troubles)
            return Check(TCP, "ok", what + others), (address[0], address[1])
    what = "; ".join(f"{address[0]} port {address[1]}: {why}" for address, why, _ in troubles)
    raise _Stop(Check(TCP, "fail", what, troubles[0][2] if troubles else "is mqtt.host right?"))


def _tls(mqtt: MqttSettings, address: tuple[str, int]) -> Check:
    try:
        context = login.tls(mqtt)
    except ConfigError:
        raise _Stop(Check(TLS, "skip", "the certificates cannot be read: see `login`")) from None
    if not context:
        return Check(TLS, "skip", "mqtt.tls is off: password and events go in plain")
    try:
        with socket.create_connection(address, DIAL_S) as plain, context.wrap_socket(plain, server_hostname=mqtt.host) as secured:
            version, certificate = secured.version(), secured.getpeercert() or {}
            secured.settimeout(ALERT_S)
            with contextlib.suppress(TimeoutError):
                secured.recv(1)
    except ssl.SSLCertVerificationError as error:
        raise _Stop(Check(TLS, "fail", f"the broker's certificate is refused: {error.verify_message}", _distrust(error))) from None
    except (OSError, ValueError) as error:
        raise _Stop(_no_tls(error, mqtt)) from None
    return judge_certificate(f"{version}", certificate, time.time())


def judge_certificate(version: str, certificate: Mapping[str, Any], now_s: float) -> Check:
    """version: of TLS; certificate: as ssl's getpeercert tells it."""
    names = [f"{value}" for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    names += [f"{value}" for _, value in certificate.get("subjectAltName", ())]
    days = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - now_s) // 86_400)
    what = f"{version}, certificate of {', '.join(dict.fromkeys(names)) or 'nobody'}, {days} days left"
    fix = "renew the broker's certificate" if days < RENEW_DAYS else ""
    return Check(TLS, "warn" if fix else "ok", what, fix)


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in (9, 10):  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
        return "is this computer's clock right? else renew the broker's certificate"
    if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return "set mqtt.host to a name that is in the certificate, or have one made for this name"
    return "set mqtt.ca_file to the certificate of who signed the broker's"


def _no_tls(error: Exception, mqtt: MqttSettings) -> Check:
    reason = f"{getattr(error, 'reason', '') or getattr(error, 'strerror', '') or error}"
    if not mqtt.cert_file and ("CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason):  # by TLS 1.3, by 1.2
        return Check(TLS, "fail", "the broker wants a certificate of our own", "set mqtt.cert_file and mqtt.key_file")
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        what = f"the broker refuses our certificate ({reason.replace('_', ' ').lower()})"
        return Check(TLS, "fail", what, "set mqtt.cert_file to one that the broker's authority signed and that is still valid")
    what = f"no TLS is spoken on this port ({reason.replace('_', ' ').lower()})"
    return Check(
        TLS, "fail", what, "set mqtt.port to the broker's port with TLS, often 8883, or mqtt.tls = false in a network you trust"
    )


def _speaks_tls(address: tuple[str, int]) -> bool:
    """Whether a port that we spoke to in plain wants TLS; nothing is sent there."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, DIAL_S) as plain, context.wrap_socket(plain):
            return True
    except (OSError, ValueError):
        return False


def _enter(mqtt: MqttSettings, node: str) -> Visit:
    """By MQTT 5, else 3.1.1, as the daemon does. Raises what a Visit raises."""
    for protocol in PROTOCOLS:
        visit = Visit(mqtt, node, protocol)
        unsupported = visit.refused is not None and visit.refused.value == login.UNSUPPORTED_VERSION
        if not unsupported and (visit.up or visit.refused is not None or not visit.lost):
            break
        visit.close()
    return visit


def _login(mqtt: MqttSettings, node: str, address: tuple[str, int]) -> tuple[Check, Visit]:
    try:
        visit = _enter(mqtt, node)
    except ConfigError:
        raise _Stop(Check(LOGIN, "skip", "the password cannot be read: see `login`")) from None
    except OSError as error:
        what, _, fix = login.failure(error).partition("; ")
        raise _Stop(Check(LOGIN, "fail", what, fix)) from None
    except Exception as error:  # noqa: BLE001 - paho's, when what comes is no MQTT
        what = f"what answers speaks no MQTT ({type(error).__name__})"
        raise _Stop(Check(LOGIN, "fail", what, "is mqtt.port right? see the broker's log")) from None
    if visit.up:
        who = f"as {mqtt.username}" if mqtt.username else "without a user name"
        return Check(LOGIN, "ok", f"let in {who} by MQTT {_version(visit)}"), visit
    visit.close()
    if visit.refused is not None:
        raise _Stop(_refused(mqtt, visit.refused))
    if visit.lost and not mqtt.tls and _speaks_tls(address):
        what = "the broker speaks TLS on this port and mqtt.tls is off"
        raise _Stop(Check(LOGIN, "fail", what, "set mqtt.tls = true, and mqtt.ca_file unless a public authority signed"))
    if visit.lost:
        what = f"the broker closes the connection without a word ({visit.lost})"
        raise _Stop(
            Check(LOGIN, "fail", what, "is it MQTT that listens there, and does it want a certificate of ours? see its log")
        )
    raise _Stop(
        Check(LOGIN, "fail", f"no answer in {ANSWER_S:g} s", "is it MQTT that listens there, and not for example its web page?")
    )


def _refused(mqtt: MqttSettings, reason: ReasonCode) -> Check:
    if reason.value == OTHER_ID:
        what = "the broker does not accept the doctor's client id, which is the daemon's and `-doctor`: no more can be looked at"
        return Check(LOGIN, "warn", what, "see the broker's log for the daemon's own")
    what, _, fix = login.refusal(reason).partition("; ")
    who = f"user {mqtt.username}" if mqtt.username else "a client without a user name"
    return Check(LOGIN, "fail", f"{who} is refused: {what}", fix or "see the broker's log")


def _publish(mqtt: MqttSettings, node: str, visit: Visit) -> Check:
    topic = f"{mqtt.root}/{node}/doctor"
    try:
        sent = visit.client.publish(topic, "hello", qos=1)
        heard = visit.wait(lambda: sent.mid in visit.answers, ANSWER_S)
    finally:
        visit.close()
    if not heard:
        what = f"{topic} is not acknowledged ({visit.lost or f'no answer in {ANSWER_S:g} s'})"
        return Check(PUBLISH, "fail", what, "see the broker's log")
    reason = visit.answers[sent.mid]
    if reason.value == login.NOT_AUTHORIZED:
        who = f"user {mqtt.username}" if mqtt.username else "clients without a user name"
        what = f"the broker's access list does not let {who} write {topic}"
        return Check(PUBLISH, "fail", what, f"let them write {mqtt.root}/{node}/# there")
    if reason.is_failure:
        return Check(PUBLISH, "fail", f"{topic} is refused ({reason})", "see the broker's log")
    unseen = "" if _version(visit) == "5" else "; by MQTT 3.1.1 nobody sees what an access list drops"
    return Check(PUBLISH, "ok", f"{topic} is acknowledged{unseen}")


def _version(visit: Visit) -> str:
    return "5" if visit.client.protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"
