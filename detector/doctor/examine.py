"""All checks, in the order in which a sample travels: microphone, model, outbox, broker; and what all of them need."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from detector.config import PLACES, Settings, node_name, outbox_path
from detector.doctor import broker, computer, network, sound, web
from detector.doctor.check import Check, failed, skipped
from detector.errors import ConfigError
from detector.publish import login

SERVICE = {"CREDENTIALS_DIRECTORY": Path("/etc/urbandetect"), "STATE_DIRECTORY": computer.STATE}
"""Where the service's password and outbox are, by the variables in which systemd names them: who calls the doctor by hand for the
service's settings means its password and outbox too."""
LOGIN, PORTAUDIO = "login", "portaudio"
KEPT = (computer.CLIPS, computer.SCORE_LOG, web.WEB)
NAMES = (LOGIN, PORTAUDIO, *network.NAMES, *computer.OUTBOX, *broker.NAMES, *KEPT, computer.CLOCK, computer.SERVICE)
"""What there is beside `settings` and the sources."""


def tell(read: Callable[[], tuple[Settings, str]], seconds: float, ask: bool, as_json: bool) -> None:
    """Print every check (see `examine`), as lines or as one JSON object. Raises ConfigError naming those that fail."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger().setLevel(logging.ERROR)  # what is warned of is in the checks
    checks = []
    for check in examine(read, seconds, ask):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.state:4}  {check.name:16}  {check.what}")
            if check.fix:
                click.echo(f"{'':24}-> {check.fix}")
    wrong = [check.name for check in checks if check.state == "fail"]
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "checks": [asdict(check) for check in checks]}))
    if wrong:
        raise ConfigError("doctor", f"{len(wrong)} of {len(checks)} checks fail: {', '.join(wrong)}")


def examine(read: Callable[[], tuple[Settings, str]], seconds: float, ask: bool) -> Iterator[Check]:
    """Every check, as it is done. read: the settings and where they are from; seconds: how long each microphone is heard;
    ask: whether a running daemon's word counts of one that cannot be opened.

    The names and their order depend on the settings alone.
    """
    try:
        settings, where = read()
    except ConfigError as error:
        yield failed("settings", error)
        yield from skipped(NAMES, "the settings cannot be read")
        return
    if where == str(PLACES[1]):
        for variable, folder in SERVICE.items():
            if folder.is_symlink() or folder.is_dir():
                os.environ.setdefault(variable, str(folder))
    service = where == str(PLACES[1]) and computer.is_installed()
    node, mqtt = node_name(settings), settings.mqtt
    names = ", ".join(source.name for source in settings.source)
    yield Check("settings", "ok", f"{where}: node {node}, source {names}")
    yield _login(settings)
    word = functools.cache(lambda: broker.daemon_says(mqtt, node) if ask else None)
    yield from sound.portaudio_and_sources(PORTAUDIO, settings.source, seconds, word)
    yield from network.examine(settings, where)
    yield from computer.outbox(outbox_path(settings) if mqtt.host else None, settings.outbox.max_mb, service)
    yield from broker.examine(mqtt, node)
    yield computer.clips(settings, service)
    yield computer.score_log(settings, service)
    yield web.examine(settings.web, service)
    yield computer.clock()
    yield computer.service()


def _login(settings: Settings) -> Check:
    """Password and certificates as files."""
    mqtt = settings.mqtt
    if not mqtt.host:
        return Check(LOGIN, "skip", "no mqtt.host is set: events go to standard output")
    try:
        password, _ = login.password(mqtt), login.tls(mqtt)
    except ConfigError as error:
        sudo = "; for the service's, run the doctor by sudo" if isinstance(error.__cause__, PermissionError) else ""
        return Check(LOGIN, "fail", f"{error.where}: {error.what}", error.fix + sudo)
    if mqtt.username and not password:
        what = f"user {mqtt.username} has no password"
        return Check(
            LOGIN, "warn", what, f"set mqtt.password_file or ${login.PASSWORD_VARIABLE}; the service's password needs sudo"
        )
    who = f"user {mqtt.username} with a password" if mqtt.username else "without a user name"
    return Check(LOGIN, "ok", who + (", with a certificate of our own" if mqtt.cert_file else ""))
