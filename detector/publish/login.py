"""Who we are to a broker and whom we trust: password, certificates, and what a refusal means."""

from __future__ import annotations

import ssl

from paho.mqtt.reasoncodes import ReasonCode

from detector.config import MqttSettings
from detector.errors import ConfigError, SettingError
from detector.secret import secret

PASSWORD_VARIABLE = "URBANDETECT_MQTT_PASSWORD"
CREDENTIAL = "mqtt_password"
"""The name of systemd's credential: see LoadCredential= in the unit."""
REFUSALS = {
    133: "the broker does not accept this client id; change mqtt.client_id",
    134: "the user name or password is wrong; check both, or the broker's users",
    135: "the user name or password is wrong, or this user may not connect; check both, or the broker's users",
    136: "the broker is unavailable",
    137: "the broker is busy",
    138: "this client is banned",
}
"""Reason codes of a refused connection: MQTT 5, section 3.2.2.2."""
WHO_WE_ARE = (133, 134, 135, 138)
"""Refusals that last until somebody changes the settings, or the broker's."""
NOT_AUTHORIZED = 135
UNSUPPORTED_VERSION = 132
TAKEN_OVER = 142


def password(settings: MqttSettings) -> str | None:
    """What the broker knows us by; None without one.

    Raises ConfigError when a file cannot be read, or has a password for nobody.
    """
    found, where = secret(settings.password_file, "mqtt.password_file", PASSWORD_VARIABLE, CREDENTIAL)
    if found and not settings.username:
        raise ConfigError(where, "has a password, but mqtt.username is empty", "give both")
    return found or None


def tls(settings: MqttSettings) -> ssl.SSLContext | None:
    """What a connection trusts and shows, read anew for each so that renewed certificates count; None without mqtt.tls.

    The broker's name and chain are always checked. Raises ConfigError naming the file that cannot be used.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        what = f"{settings.ca_file} holds no certificate to trust ({_reason(error)})"
        raise SettingError("mqtt.ca_file", what, "check the file and its permissions") from error
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None, password="")
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(file for file in (settings.cert_file, settings.key_file) if file)
            what = f"{files} are no certificate and key that fit ({_reason(error)})"
            raise SettingError("mqtt.cert_file", what, "check mqtt.cert_file and mqtt.key_file") from error
    return context


def refusal(reason: ReasonCode) -> str:
    """Why the broker does not let us in, and what to do."""
    return REFUSALS.get(reason.value, f"{reason}")


def failure(error: Exception) -> str:
    """Why no connection came about, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}; check mqtt.ca_file, mqtt.host and both clocks"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({_reason(error)}); check mqtt.tls, mqtt.port and the client's certificate"
    if isinstance(error, TimeoutError):
        return "no answer; is the broker running and no firewall between?"
    if isinstance(error, OSError):
        return f"no connection ({_reason(error)}); is the broker running, is mqtt.host right?"
    return f"no connection ({type(error).__name__}: {error})"


def _reason(error: Exception) -> str:
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).replace("_", " ").lower()
