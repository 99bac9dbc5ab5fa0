"""Who may talk to the listener: its address, the token, and what browsers are told to refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detector.config import WebSettings
from detector.errors import SettingError
from detector.secret import secret, unusable

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "URBANDETECT_WEB_TOKEN"
CREDENTIAL = "web_token"
"""The name of systemd's credential."""
SHORTEST_TOKEN = 16
"""Characters: a token is guessed at from the whole network, as fast as the network goes."""
COOKIE = "urbandetect_web"
COOKIE_S = 30 * 86_400
OPEN_TO_ALL = ("/healthz",)
"""Says that the process gets on and nothing else: a prober needs no secret for it."""
LOCAL_NAMES = ("localhost", "ip6-localhost")


def token(settings: WebSettings) -> str:
    """What has to be shown to the listener; empty without one.

    Raises ConfigError when it cannot be read or is too short.
    """
    found, where = secret(settings.token_file, "web.token_file", TOKEN_VARIABLE, CREDENTIAL)
    if not where:
        return ""
    if not re.fullmatch(rf"[!-~]{{{SHORTEST_TOKEN},}}", found):
        what = f"holds no web token of {SHORTEST_TOKEN} or more letters and digits"
        raise unusable(settings.token_file, "web.token_file", where, what, "make one: openssl rand -hex 16")
    return found


def listen(address: str, secret: str) -> socket.socket:
    """The listening socket of `HOST:PORT` (port 0: a free one). Raises SettingError when it cannot be had, or is bound beyond this
    computer without a token."""
    key = "web.listen"
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, at = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        what = f"{address} is no address of this computer ({getattr(error, 'strerror', None) or error})"
        raise SettingError(key, what, "for this computer alone: 127.0.0.1:8080") from error
    if not secret and not ipaddress.ip_address(str(at[0]).partition("%")[0]).is_loopback:
        what = f"{address} is reached from other computers and has no token"
        raise SettingError(key, what, "give web.token_file, or listen on 127.0.0.1")
    try:
        return socket.create_server(at[:2], family=family)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else f"{error}"
        raise SettingError(key, f"cannot listen at {address} ({reason})", "choose another port or address") from error


class Guard:
    """Lets a request through to `app` when it may; answers it otherwise. No failure of `app` gets further than this.

    A name of another host in `Host` is how a web page reaches into a network by DNS rebinding; another `Origin`, or a browser's
    word that the request is another site's, how it acts for its reader.
    """

    def __init__(self, app: ASGIApp, secret: str, hosts: Iterable[str], policy: str) -> None:
        """hosts: names under which this listener is reached, besides addresses and this computer's own; policy: the page's CSP."""
        name = socket.gethostname().lower()
        self._app, self._secret, self._policy = app, secret.encode(), policy
        self._proxied = {host.lower() for host in hosts}
        self._hosts = {*LOCAL_NAMES, name, f"{name.partition('.')[0]}.local", *self._proxied}
        self._cookie = hmac.new(self._secret, b"urbandetect web", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-store"
                if shown:
                    headers.append("Set-Cookie", f"{COOKIE}={self._cookie}; Path=/; Max-Age={COOKIE_S}; HttpOnly; SameSite=Strict")
            await send(message)

        headers = Headers(scope=scope)
        shown = False
        status, why = self._foreign(headers)
        if not status and self._secret and scope["path"] not in OPEN_TO_ALL:
            shown = scope["path"] == "/" and self._is_token(*parse_qs(scope["query_string"].decode("latin-1")).get("token", []))
            if not (shown or self._is_token(headers.get("authorization", "").removeprefix("Bearer ")) or self._has_cookie(headers)):
                status, why = 401, "a token is needed: open /?token=... once, or send Authorization: Bearer ..."
        try:
            if status:
                challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else None
                await JSONResponse({"error": why}, status, challenge)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - of one request: said in one line, and no other is harmed
            log.error("web %s: internal error: %s: %s", scope["path"], type(error).__name__, error)
            if not begun:
                await JSONResponse({"error": "internal error"}, 500)(scope, receive, answer)

    def _foreign(self, headers: Headers) -> tuple[int, str]:
        """Why a request is another site's: status 0 when it is not."""
        host = headers.get("host", "").lower()
        if not _is_address(name := _without_port(host)) and name not in self._hosts:
            return 421, "this is not the host asked for; name it in web.hosts if it is"
        origin = headers.get("origin", "").lower()
        site = origin.partition("://")[2]
        if origin and site != host and _without_port(site) not in self._proxied:
            return 403, "a page of another origin asks"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "a page of another site asks"
        return 0, ""

    def _is_token(self, given: str = "", *more: str) -> bool:
        return not more and hmac.compare_digest(given.encode("utf-8", "replace"), self._secret)

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode("utf-8", "replace"), self._cookie.encode())


def policy(page: str) -> str:
    """A content security policy for a page: its own script and style by their hashes, its own server, nothing else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src data:; "
        "media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host).strip("[]")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
