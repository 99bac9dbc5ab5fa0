"""Recordings elsewhere: s3://, gs:// and whatever else fsspec knows. Credentials are those fsspec's own packages find."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import Any

from detector.archive import Recording
from detector.errors import ConfigError, InputError, TryAgainError, install

CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""What stores call the thing that is another one when a file has changed; the first there is counts."""


def listing(url: str) -> Iterator[tuple[Recording, bool]]:
    """The file of this URL, or all files below it, sorted, and whether it was named itself.

    Raises InputError for what is no URL that can be had, ConfigError for a missing package, TryAgainError.
    """
    store, path = _open(url)
    try:
        found = store.find(path, detail=True)
    except FileNotFoundError:
        found = {}
    except ValueError as error:
        raise InputError(url, "is no whole URL", "for example https://host/street.wav, s3://bucket/folder") from error
    except Exception as error:
        raise _failed(url, error) from error
    if not found:
        yield Recording(url), True
    scheme = url.partition("://")[0]
    for each in sorted(found):
        if any(part.startswith(".") for part in each.removeprefix(str(path)).split("/")[:-1]):
            continue  # a hidden folder
        facts = found[each]
        changed = next((str(facts[key]) for key in CHANGED if facts.get(key)), "")
        name = f"{scheme}://{each}" if "://" not in each else each
        yield Recording(name, int(facts.get("size") or 0), changed), each.strip("/") == str(path).strip("/")


def fetch(url: str, to: str) -> None:
    """Copy a file here. Raises TryAgainError when it does not come."""
    store, path = _open(url)
    try:
        store.get_file(path, to)
    except Exception as error:
        raise _failed(url, error) from error


def _open(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(url)
    except ImportError as error:
        fix = f"{install('archive')}; s3:// needs s3fs, gs:// gcsfs, too"
        raise ConfigError(url, f"needs a package that is not there ({' '.join(str(error).split())[:100]})", fix) from error
    except ValueError as error:
        raise InputError(url, f"is of no known kind ({error!s:.100})", "for example s3://bucket/folder") from error
    except Exception as error:  # some connect at once
        raise _failed(url, error) from error
    return store, path


def _failed(url: str, error: Exception) -> TryAgainError:
    return TryAgainError(url, f"cannot be fetched ({_reason(error)})", "is the name right, are there credentials?")


def _reason(error: Exception) -> str:
    """In words, without names of Python's."""
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return "its certificate is refused" if isinstance(error, ssl.SSLCertVerificationError) else "no TLS is spoken there"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)  # below 0: of looking up a name
    if status := getattr(error, "status", 0):
        return f"the server says {status} {getattr(error, 'message', '')}".rstrip()
    return " ".join(str(error).split())[:160] or "it fails without a reason"
