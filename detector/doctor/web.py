"""The page: can it be shown, to whom, and on a port that nobody else has."""

from __future__ import annotations

import contextlib
import errno
import http.client
from pathlib import Path

from detector.config import WebSettings
from detector.doctor.check import Check, failed
from detector.errors import ConfigError
from detector.secret import secret
from detector.web import not_installed

WEB = "web"
ANSWER_S = 2.0


def examine(settings: WebSettings, service: bool) -> Check:
    """Its packages, its token, its port, which the running daemon may have. service: whether it is to be the service's."""
    if not settings.listen:
        return Check(WEB, "skip", "no web.listen is set: no port is open")
    try:
        from detector.web import guard, server
    except ImportError as error:
        return failed(WEB, not_installed(error))
    credential = f"let web.token_file be empty, and give the service LoadCredential={guard.CREDENTIAL}:FILE (docs/WEB.md)"
    try:
        token = guard.token(settings)
        where = secret(settings.token_file, "web.token_file", guard.TOKEN_VARIABLE, guard.CREDENTIAL)[1]
        mode = Path(where).stat().st_mode if where not in ("", guard.TOKEN_VARIABLE) else 0
    except ConfigError as error:
        sudo = "; for the service's, run the doctor by sudo" if isinstance(error.__cause__, PermissionError) else ""
        return Check(WEB, "fail", f"{error.where}: {error.what}", error.fix + sudo)
    if service and settings.token_file and not mode & 0o004:
        return Check(WEB, "fail", f"{where}: the service's user may not read it", credential)
    try:
        guard.listen(settings.listen, token).close()
        port = "free"
    except ConfigError as error:
        if getattr(error.__cause__, "errno", None) != errno.EADDRINUSE:
            return failed(WEB, error)
        health = _health(settings.listen)
        if health is None:
            fix = "end that program, or choose another web.listen"
            return Check(WEB, "fail", f"{settings.listen}: another program listens there", fix)
        if health != server.ALIVE:
            return Check(
                WEB, "fail", f"{settings.listen}: the running daemon has it: {health}", "journalctl -u urbandetect says why"
            )
        port = "in use by the running daemon"
    what = f"{settings.listen}: {port}, " + (f"with the token of {where}" if token else "without a token")
    if mode & 0o007:
        return Check(WEB, "warn", f"{what}, which every user here can read", credential if service else f"chmod 600 {where}")
    return Check(WEB, "ok", what)


def _health(listen: str) -> str | None:
    """What an urbandetect that listens there says of itself; None where another program does."""
    host, _, port = listen.rpartition(":")
    with contextlib.suppress(OSError, http.client.HTTPException, UnicodeError):
        line = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=ANSWER_S)
        with contextlib.closing(line):
            line.request("GET", "/healthz", headers={"Host": "localhost"})
            answer = line.getresponse()
            said = answer.read(200).decode()
            if "default-src 'none'" in answer.headers.get("Content-Security-Policy", ""):
                return said
    return None
