"""Passwords and tokens: from a file, else the environment, else systemd's credential. Never from a command line, never in a log."""

from __future__ import annotations

import os
from pathlib import Path

from detector.errors import ConfigError
from detector.tables import read_file


def secret(file: str, key: str, variable: str, credential: str) -> tuple[str, str]:
    """The first line of what is found first, and where that was; empty where there is nothing.

    file: the setting `key` named; variable: of the environment; credential: its name at systemd (LoadCredential=).
    Raises ConfigError for a file that cannot be read.
    """
    given = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / credential
    if not file and variable in os.environ:
        return os.environ[variable], variable
    if not file and not given.exists():
        return "", ""
    where = file or str(given)
    content = read_file(Path(where), fix=f"check {key} and its permissions")
    try:
        return content.decode("utf-8").partition("\n")[0].rstrip("\r"), where
    except UnicodeDecodeError as error:
        raise ConfigError(where, "is no text", f"check {key}") from error
