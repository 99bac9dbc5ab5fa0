"""What the computer gives: a place for the outbox, clips and score logs, the time, a supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from detector.config import Settings, clips_folder, scores_folder
from detector.doctor.check import Check, failed, skipped
from detector.errors import ConfigError
from detector.publish.outbox import CLOCK_IS_SET_S, is_foreign
from detector.score_file import SUFFIX

OUTBOX = WAITING, DISK = ("outbox", "disk")
CLIPS, SCORE_LOG, CLOCK, SERVICE = "clips", "score log", "clock", "service"
STATE = Path("/var/lib/urbandetect")
"""Where the service's files are, and all that it may write."""
LAST_YEAR = 2100
"""What a clock whose battery ran out may well be beyond."""
UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2)."""
UNIT = "urbandetect.service"
PROPERTIES = ("LoadState", "UnitFileState", "ActiveState", "SubState", "StatusText", "ExecMainStatus", "NRestarts")
BOOTED = Path("/run/systemd/system")
"""There where systemd runs the computer: sd_booted(3)."""
CODES = {
    "64": "wrong usage or an input that cannot be used",
    "70": "an error of ours: please report it",
    "75": "something was missing for a while",
    "78": "wrong configuration: the checks above and the journal say what",
}
"""docs/ARCHITECTURE.md, Exit codes."""


def outbox(path: Path | None, max_mb: float, service: bool = False) -> Iterator[Check]:
    """The two checks of OUTBOX; path: None without a broker. Nothing is changed."""
    if not path:
        yield from skipped(OUTBOX, "no mqtt.host is set: nothing waits")
        return
    yield _waiting(path)

    def sizes() -> list[int]:
        return [file.stat().st_size for file in path.parent.glob(f"{path.name}*")]

    yield _place(DISK, "outbox.path", path.parent, sizes, max_mb, service)


def _waiting(path: Path) -> Check:
    try:
        if not path.exists():
            why, fix = _refusal(path.parent, "outbox.path")
            if why:
                return Check(WAITING, "fail", f"{path}: {why}", fix)
            return Check(WAITING, "ok", f"{path}: not there yet, and can be made")
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0.5, isolation_level=None)
    except PermissionError:
        return Check(WAITING, "skip", f"{path}: this user may not look", "run the doctor by sudo, if it is the service's")
    except (OSError, sqlite3.Error) as error:
        return Check(WAITING, "fail", f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})", "set outbox.path")
    try:
        db.execute("BEGIN IMMEDIATE")
        damaged = db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'message'").fetchone()[0]
        count, oldest_s = db.execute("SELECT count(*), min(queued_s) FROM message").fetchone() if tables else (0, None)
        db.execute("ROLLBACK")
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return Check(WAITING, "ok", f"{path}: in use by the running daemon")
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            what = f"{path}: this user may not write it ({error})"
            return Check(WAITING, "fail", what, "run the doctor by sudo, or change who may write there")
        damaged = True
    finally:
        db.close()
    if damaged and is_foreign(path):
        return Check(WAITING, "fail", f"{path}: is a file of another kind", "set another outbox.path, or move it away")
    if damaged:
        fix = f"copy it if what waits in it matters: urbandetect sets it aside as {path.name}.damaged when it starts"
        return Check(WAITING, "warn", f"{path}: damaged, or no outbox", fix)
    if not count or oldest_s is None:
        return Check(WAITING, "ok", f"{path}: nothing waits")
    return Check(WAITING, "ok", f"{path}: {count} messages wait, the oldest for {max(0.0, time.time() - oldest_s):,.0f} s")


def clips(settings: Settings, service: bool = False) -> Check:
    """Whether the folder of clips can be written, and what it may grow to fits. Nothing is changed."""
    if not settings.clips.folder:
        return Check(CLIPS, "skip", "no clips.folder is set: no sound is kept")
    from detector.clips.flac import sealer
    from detector.clips.shelf import clips as kept_in

    folder = clips_folder(settings)
    try:
        if settings.clips.recipient:
            sealer(settings.clips.recipient)
    except ConfigError as error:
        return failed(CLIPS, error)
    check = _place(CLIPS, "clips.folder", folder, lambda: [size for _, size in kept_in(folder)], settings.clips.max_mb, service)
    return replace(check, what=f"{check.what}, encrypted") if check.state == "ok" and settings.clips.recipient else check


def score_log(settings: Settings, service: bool = False) -> Check:
    """Whether the folder of score logs can be written, and what it may grow to fits. Nothing is changed."""
    if not settings.log_scores.folder:
        return Check(SCORE_LOG, "skip", "no log_scores.folder is set: no scores are kept")
    folder = scores_folder(settings)

    def sizes() -> list[int]:
        return [file.stat().st_size for file in folder.glob(f"*{SUFFIX}")]

    return _place(SCORE_LOG, "log_scores.folder", folder, sizes, settings.log_scores.max_mb, service)


def _place(name: str, setting: str, folder: Path, sizes: Callable[[], list[int]], most_mb: float, service: bool) -> Check:
    """Whether a folder can be written, or made, and what it may grow to fits. Nothing is changed.

    setting: what names it; sizes: of our files in it, in bytes; service: whether the service is to write there, and not this user.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()
        why, fix = _refusal(folder, setting)
        if why:
            return Check(name, "fail", f"{folder}: {why}", fix)
        kept_mb, free_mb = sum(sizes() if folder.exists() else ()) / 1e6, shutil.disk_usage(_nearest(folder)).free / 1e6
    except PermissionError:
        return Check(name, "skip", f"{folder}: this user may not look", "run the doctor by sudo, if it is the service's")
    except OSError as error:
        return Check(name, "fail", f"{folder}: cannot be read ({error.strerror})", f"set another {setting}")
    if service and not _of_the_service(folder):
        fix = f"set {setting} to a path below {STATE}, or let it: `systemctl edit urbandetect`, ReadWritePaths={folder}"
        return Check(name, "warn", f"{folder}: the service's user may write only below {STATE}", fix)
    what = f"{folder}: {kept_mb:,.0f} of {most_mb:g} MB; {free_mb:,.0f} MB free"
    if free_mb < most_mb - kept_mb:
        fix = f"make room, or set another {setting} or a smaller {setting.partition('.')[0]}.max_mb"
        return Check(name, "fail" if free_mb < 1 else "warn", what, fix)
    return Check(name, "ok", what)


def _refusal(folder: Path, setting: str) -> tuple[str, str]:
    """Why a folder cannot be written, or made, and what to do; both empty when it can."""
    there = _nearest(folder)
    what, other = "cannot be written" if there == folder.absolute() else "cannot be made", f"set another {setting}"
    if not there.is_dir():
        return f"{what}: {there} is no folder", other
    if not shutil.disk_usage(there).total:  # /proc, /sys: even root makes no file there
        return f"{what}: {there} takes no files", other
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            return f"{what}: the disk of {there} is read-only", other
        return f"{what}: this user may not write in {there}", f"{other}, or change who may write there"
    return "", ""


def _nearest(path: Path) -> Path:
    """It, or the folder nearest to it that is there and may be looked at."""
    for each in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError):
            if each.exists():
                return each
    return Path(path.anchor or ".")


def _of_the_service(folder: Path) -> bool:
    """Whether the unit lets the service write there: it sees the rest of the computer read-only."""
    try:
        unit = _unit("ReadWritePaths", "ProtectSystem")
    except (OSError, subprocess.SubprocessError):
        return True
    writable = [STATE, *(Path(path.lstrip("-+")) for path in unit.get("ReadWritePaths", "").split())]
    return unit.get("ProtectSystem") != "strict" or any(folder.is_relative_to(each) for each in writable)


def clock() -> Check:
    """Whether event times mean anything."""
    return judge_clock(time.time(), synchronised())


def judge_clock(now_s: float, synchronised: bool | None) -> Check:
    """now_s: Unix time; synchronised: None where nobody knows."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < CLOCK_IS_SET_S or time.gmtime(now_s).tm_year >= LAST_YEAR:
        return Check(CLOCK, "fail", f"{now}: this cannot be", "set it, for example by `timedatectl set-ntp true`; TLS needs it too")
    if synchronised is None:
        return Check(CLOCK, "ok", f"{now}; whether it is synchronised, this computer does not tell")
    if not synchronised:
        return Check(CLOCK, "warn", f"{now}, not synchronised: event times drift", "`timedatectl set-ntp true`, or run chrony")
    return Check(CLOCK, "ok", f"{now}, synchronised")


class _Timex(ctypes.Structure):
    """The beginning of struct timex, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def synchronised() -> bool | None:
    """What the kernel's clock says; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    facts = _Timex()
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(facts)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not facts.status & UNSYNCHRONISED


def is_installed() -> bool:
    """Whether there is a service here."""
    return BOOTED.exists() and Path("/etc/systemd/system", UNIT).exists()


def service() -> Check:
    """How systemd's unit is."""
    if not BOOTED.exists():
        return Check(SERVICE, "skip", "this computer is not run by systemd")
    try:
        return judge_service(_unit(*PROPERTIES))
    except (OSError, subprocess.SubprocessError) as error:
        return Check(SERVICE, "skip", f"systemctl does not tell ({type(error).__name__})")


def _unit(*properties: str) -> dict[str, str]:
    """What systemd says of the unit. Raises OSError or SubprocessError where it cannot be asked."""
    command = ["systemctl", "show", UNIT, f"--property={','.join(properties)}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    return dict(line.partition("=")[::2] for line in said.splitlines())


def judge_service(unit: Mapping[str, str]) -> Check:
    """unit: the PROPERTIES that systemd tells of it."""
    if unit.get("LoadState") != "loaded":
        return Check(SERVICE, "skip", "the unit is not installed", "sudo deploy/systemd/install, should it run as a service")
    active, restarts = unit.get("ActiveState", ""), unit.get("NRestarts", "0") or "0"
    enabled = unit.get("UnitFileState") in ("enabled", "enabled-runtime", "static")
    code = unit.get("ExecMainStatus", "0")
    what = f"{active} ({unit.get('SubState', '')})" + ("" if enabled else ", not enabled")
    what += f", started again {restarts} times" if restarts != "0" else ""
    if active == "active":
        what += f": {unit['StatusText']}" if unit.get("StatusText") else ""
        if not enabled:
            return Check(SERVICE, "warn", what, "sudo systemctl enable urbandetect: else it is not there after a boot")
        return Check(SERVICE, "ok" if restarts == "0" else "warn", what, "journalctl -u urbandetect says why" * (restarts != "0"))
    if code != "0":
        what += f", its last exit status was {code}" + (f" ({CODES[code]})" if code in CODES else "")
    if active == "failed":
        return Check(SERVICE, "fail", what, "journalctl -u urbandetect says why; then sudo systemctl restart urbandetect")
    if active in ("activating", "reloading"):
        return Check(SERVICE, "warn", what, "journalctl -u urbandetect says why, if it stays so")
    return Check(SERVICE, "warn", what, "sudo systemctl enable --now urbandetect")
