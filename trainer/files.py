"""Files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from detector.errors import InputError


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: `write` fills a file beside it, which then takes its place. Raises InputError."""
    if not path.name:
        raise InputError(str(path), "is no name for a file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # soundfile turns a full disk into the latter
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise InputError(str(path), f"cannot be written ({reason})", "is the disk full, or the folder not yours?") from error
    finally:
        with suppress(OSError):
            partial.unlink()
