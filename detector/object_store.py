"""Recordings elsewhere: s3://, gs:// and whatever else fsspec knows. Credentials are those fsspec's own packages find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detector.archive import Recording
from detector.errors import ConfigError, TryAgainError, install

CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""What stores call the thing that is another one when a file has changed; the first there is counts."""


def listing(url: str) -> Iterator[tuple[Recording, bool]]:
    """The file of this URL, or all files below it, sorted, and whether it was named itself. Raises ConfigError, TryAgainError."""
    store, path = _open(url)
    try:
        found = store.find(path, detail=True)
    except FileNotFoundError:
        found = {}
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
        raise ConfigError(url, f"is of no known kind ({error!s:.100})", "for example s3://bucket/folder") from error
    except Exception as error:  # some connect at once
        raise _failed(url, error) from error
    return store, path


def _failed(url: str, error: Exception) -> TryAgainError:
    what = f"cannot be fetched ({' '.join(f'{type(error).__name__} {error}'.split())[:160]})"
    return TryAgainError(url, what, "is the name right, are there credentials?")
