"""Passwords and tokens: from a file, else the environment, else systemd's credential. Never from a command line, never in a log."""

from __future__ import annotations

import os
from pathlib import Path

from detector.errors import ConfigError, SettingError
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
    try:
        return read_file(Path(where)).decode("utf-8").partition("\n")[0].rstrip("\r"), where
    except ConfigError as error:
        raise unusable(file, key, where, error.what, "check its name and permissions") from error.__cause__
    except UnicodeDecodeError as error:
        raise unusable(file, key, where, "is no text", "check what it holds") from error


def unusable(file: str, key: str, where: str, what: str, fix: str) -> ConfigError:
    """What is wrong with what `secret` found: with the setting, where it named the file."""
    return SettingError(key, f"{where} {what}", fix) if file else ConfigError(where, what, fix)
