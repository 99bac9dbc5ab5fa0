"""The address of a stream: which are taken, and what of one may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from detector.errors import ConfigError, InputError

PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,tcp,tls",
    "http": "http,https,tcp,tls,crypto",
    "https": "https,tcp,tls,crypto",
}
"""Which of ffmpeg's protocols a stream of each scheme may use, itself and in its playlists: no `file:`, no `concat:`, none in plain
behind one that is encrypted."""


def is_stream(name: str) -> bool:
    """Whether an `input` is the URL of a stream, not a file's name."""
    return "://" in name


def check_url(url: str, where: str) -> None:
    """Raise ConfigError unless it is a URL of one of PROTOCOLS; never says the URL, for there may be a password in it."""
    scheme = url.partition("://")[0]
    if scheme.lower() not in PROTOCOLS:
        what = f"input = {scheme + '://...' if scheme.isalnum() else 'a URL'!r} is no stream that can be heard"
        raise ConfigError(where, what, f"one of {', '.join(f'{known}://' for known in PROTOCOLS)}, or a file's name")
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", url):
        fix = "rtsp://user:password@host:554/path; in names and passwords write %40 for @, %23 for #, %2F for /, %3A for :"
        raise ConfigError(where, f"input = '{scheme}://...' is no whole URL", fix)


def refuse_password(url: str) -> None:
    """Raise InputError for a URL of the command line with a password in it."""
    if re.search(r"://[^@]*:[^@]*@", url) or re.search(r"(pass\w*|pwd)=", url, re.IGNORECASE):
        what = "holds a password, and every user of this computer can read a command line"
        raise InputError("--input", what, 'write it into detector.toml, as input = "..." of a [[source]]')


def shown(url: str) -> str:
    """A URL without what may be a secret in it: user and password, what stands behind a question mark, and from where cameras write
    `user=...&password=...` into the path."""
    scheme, _, rest = url.partition("://")
    _who, at, place = rest.rpartition("@")
    found = re.search(r"\?|[^/?=&;]*[=&;]", place)
    path, secret = (place[: found.start()], f"{'?' * place.startswith('?', found.start())}***") if found else (place, "")
    return f"{scheme}://{'***@' if at else ''}{path}{secret}"
