"""What can go wrong, said once: where, what, what to do, and the exit code a script may rely on."""

from __future__ import annotations

import errno
import shlex
import sys

NO_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    errno.ENAMETOOLONG,
)
"""What a folder says that takes nothing until somebody changes it or its name."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LONGEST_PART = 500
"""Characters of each part of an error that are shown."""


class UrbandetectError(Exception):
    """An error the user can act on: printed as one line, never as a traceback.

    where: the file, key, device or address; what: what is wrong with it; fix: what to do about it.
    """

    exit_code = 70

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        self.where, self.what, self.fix = where, what, fix
        super().__init__(": ".join(map(printable, (where, what))) + (f"; {printable(fix)}" if fix else ""))

    def __reduce__(self) -> tuple[type[UrbandetectError], tuple[str, str, str]]:
        """As itself from one process to another."""
        return type(self), (self.where, self.what, self.fix)


def printable(text: str) -> str:
    """What may be shown on a terminal of a text that may come from anywhere: one line, no control characters, not endless."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= LONGEST_PART else f"{shown[:LONGEST_PART]}..."


def install(extra: str) -> str:
    """What to do where a package of this extra is missing: it names the Python that lacks it, the service's too.

    pip finds urbandetect installed there, and does not ask an index for it, which has none.
    """
    return f"install it: {shlex.join([sys.executable, '-m', 'pip', 'install', f'urbandetect[{extra}]'])}"


class InputError(UrbandetectError):
    """A file or argument given on the command line cannot be used (exit 64)."""

    exit_code = 64


class TryAgainError(UrbandetectError):
    """Something outside is missing now and may come back: a supervisor should start us again (exit 75)."""

    exit_code = 75


class Hang(TryAgainError):
    """A call into the system does not come back: only a new process helps."""


class ConfigError(UrbandetectError):
    """A setting, cfg, model or password is wrong and stays wrong until someone changes it (exit 78)."""

    exit_code = 78


class SettingError(ConfigError):
    """A setting that reads well cannot be used here. where: its key; source: whose; who set it is said where that is known."""

    def __init__(self, where: str, what: str, fix: str = "", source: str = "") -> None:
        super().__init__(where, what, fix)
        self.source = source


class CfgError(ConfigError):
    """An architecture (.cfg) does not describe a network."""


class ModelError(ConfigError):
    """A model file breaks the contract of docs/ARCHITECTURE.md."""


def not_written(where: str, setting: str, error: Exception) -> UrbandetectError:
    """Why nothing is written in the folder that `setting` names, and what to do: exit 78 where that stays so, else 75."""
    if isinstance(error, UrbandetectError):
        return error
    if not isinstance(error, OSError):
        return UrbandetectError(where, f"internal error: {type(error).__name__}: {error}")
    what, other = f"cannot be written ({error.strerror})", f"set another {setting}"
    if error.errno in NO_PLACE:
        return ConfigError(where, what, f"{other}, or change who may write there")
    return TryAgainError(where, what, f"make room, or {other}" if error.errno in NO_ROOM else f"look after the disk, or {other}")
