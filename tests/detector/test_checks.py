"""What the doctor makes of facts."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detector.audio import devices
from detector.config import ClipSettings, ModelSettings, ProfileSettings, ScoreLogSettings, Settings, ThresholdSettings, WebSettings
from detector.doctor import computer, network, sound, web
from detector.doctor.broker import judge_certificate
from detector.doctor.check import Check
from detector.doctor.examine import NAMES
from detector.errors import TryAgainError, install
from detector.model import Model
from detector.publish.outbox import Outbox

RATE = 16000
PACKAGE = Path(sound.__file__).parents[1]


def heard(sound_of_it, **facts):
    result = sound.Heard(RATE, **({"seconds": 5.0, "samples": 5 * RATE} | facts))
    result.hear(np.asarray(sound_of_it, np.float32))
    return result


def street(level=0.02):
    return np.random.default_rng(0).normal(0, level, RATE)


@pytest.mark.parametrize(
    ("samples", "state", "said"),
    [
        (street(), "ok", "-31."),
        (np.zeros(RATE), "fail", "digital silence: every sample is 0"),
        (np.full(RATE, 0.5), "fail", "digital silence: every sample is 0.5"),
        (street(1e-5), "warn", "hardly alive"),
        (np.clip(street(0.5), -1, 1), "warn", "of the samples clipped"),
        (street() + 0.1, "warn", "-31.0 dBFS, a constant of +0.100 in all samples"),
    ],
    ids=["street", "muted", "stuck", "quiet", "clipped", "offset"],
)
def test_a_level_that_is_no_sound_is_told_and_a_street_is_not(samples, state, said):
    check = sound.judge_level("level", heard(samples))
    assert (check.state, said in check.what) == (state, True), check
    assert bool(check.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("facts", "state", "said"),
    [
        ({}, "ok", "none is missing"),
        ({"gaps": {"overflow": 3}}, "warn", "3 times samples were lost (the sound card's buffer ran over)"),
        ({"samples": 4 * RATE}, "warn", "12,800 samples came a second, at a rate of 16000 Hz"),
        ({"lost": "microphone x: has gone"}, "fail", "microphone x: has gone"),
    ],
)
def test_samples_that_are_missing_are_told(facts, state, said):
    check = sound.judge_samples("samples", heard(street(), **facts))
    assert (check.state, said in check.what) == (state, True), check


def test_who_has_every_microphone_is_said(monkeypatch, tmp_path):
    error = TryAgainError("microphone default", "this computer has no input device that can be opened", "plug one in")
    status = tmp_path / "card2/pcm0c/sub0/status"
    status.parent.mkdir(parents=True)
    status.write_text(f"state: RUNNING\nowner_pid   : {os.getpid()}\n")
    (who,) = sound.holders(tmp_path)
    assert who.startswith("hw:2,0 by ")
    monkeypatch.setattr(sound, "holders", lambda: [who])
    assert sound._why_not("mic1 device", error) == Check(
        "mic1 device",
        "fail",
        f"microphone default: every microphone is in use: {who}",
        "end that program, or name another microphone",
    )
    monkeypatch.setattr(sound, "holders", lambda: ["hw:2,0 by urbandetect (process 7)"])
    check = sound._why_not("mic1 device", error)
    assert (check.state, "a running urbandetect has it" in check.what) == ("warn", True)


def test_who_opened_it_in_a_thread_that_has_ended_is_known_by_the_file_it_has_open(tmp_path, monkeypatch):
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    status = tmp_path / "card2/pcm0c/sub0/status"
    status.parent.mkdir(parents=True)
    status.write_text(f"state: RUNNING\nowner_pid   : {thread.native_id}\n")
    assert devices.holder((2, 0), tmp_path) == " by another program"
    monkeypatch.setattr(devices, "NODES", tmp_path)
    with (tmp_path / "pcmC2D0c").open("w"):
        assert devices.holder((2, 0), tmp_path).endswith(f" (process {os.getpid()})")


@pytest.mark.skipif(os.name != "posix", reason="Linux's hints")
def test_linux_says_why_a_user_sees_no_microphone(tmp_path, monkeypatch):
    assert "the kernel knows no microphone" in sound.hint(tmp_path, "")
    (tmp_path / "pcmC0D0c").touch()
    (tmp_path / "pipewire-0").touch()
    assert "PipeWire runs and may hold it" in sound.hint(tmp_path, str(tmp_path))
    assert sound.hint(tmp_path, "") == ""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "usermod -aG audio" in sound.hint(tmp_path, "")


@pytest.mark.parametrize(("took_s", "state"), [(0.001, "ok"), (0.06, "warn"), (0.2, "fail")])
def test_a_model_that_is_too_slow_is_told(took_s, state):
    assert network.judge_speed(took_s, 0.1, 1).state == state


def test_the_profile_that_is_in_force_now_and_what_it_mutes_is_told(loudness_model):
    halves = [ProfileSettings("night", *half, muted=("loud",)) for half in (("00:00", "12:00"), ("12:00", "00:00"))]
    settings = Settings(model=ModelSettings(str(loudness_model)), thresholds={"so_far": ThresholdSettings(on=0.3)})
    assert _thresholds(settings) == Check("thresholds", "ok", "the model's own, changed for so_far")
    muted = _thresholds(replace(settings, profile=tuple(halves)))
    assert muted.what == "the model's own, changed for so_far; profile night is in force and mutes loud"
    wrong = _thresholds(replace(settings, profile=(ProfileSettings("night", "00:00", "12:00", muted=("sirene",)),)))
    assert wrong.state == "fail"
    assert "profile night: muted: the model has no label 'sirene'" in wrong.what


def _thresholds(settings):
    return next(check for check in network.examine(settings, "detector.toml") if check.name == network.THRESHOLDS)


@pytest.mark.parametrize(
    ("now_s", "synchronised", "state"),
    [(1.0, True, "fail"), (4.2e9, True, "fail"), (1.8e9, False, "warn"), (1.8e9, True, "ok"), (1.8e9, None, "ok")],
)
def test_a_clock_that_cannot_be_right_is_told(now_s, synchronised, state):
    assert computer.judge_clock(now_s, synchronised).state == state


@pytest.mark.parametrize(
    ("unit", "state", "said"),
    [
        ({"LoadState": "not-found"}, "skip", "not installed"),
        ({"ActiveState": "active", "StatusText": "mic1 hearing"}, "ok", "active (running): mic1 hearing"),
        ({"ActiveState": "active", "NRestarts": "4"}, "warn", "started again 4 times"),
        ({"ActiveState": "active", "UnitFileState": "disabled"}, "warn", "not enabled"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warn", "inactive (dead)"),
        (
            {"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78"},
            "fail",
            "last exit status was 78 (wrong configuration",
        ),
    ],
)
def test_a_service_is_as_systemd_tells(unit, state, said):
    healthy = {"LoadState": "loaded", "UnitFileState": "enabled", "SubState": "running", "NRestarts": "0", "ExecMainStatus": "0"}
    check = computer.judge_service(healthy | unit)
    assert (check.state, said in check.what) == (state, True), check
    assert bool(check.fix) == (state != "ok")


@pytest.mark.parametrize(("days", "state"), [(90.5, "ok"), (3.5, "warn")])
def test_a_certificate_that_ends_soon_is_told(days, state):
    end = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(1.8e9 + days * 86_400))
    certificate = {"subject": ((("commonName", "broker"),),), "subjectAltName": (("DNS", "broker"),), "notAfter": end}
    check = judge_certificate("TLSv1.3", certificate, 1.8e9)
    assert (check.state, check.what) == (state, f"TLSv1.3, certificate of broker, {int(days)} days left")


class TestOutbox:
    def look(self, path):
        return next(computer.outbox(path, 64.0))

    def test_none_yet_is_fine_and_none_is_made(self, tmp_path):
        assert self.look(tmp_path / "state" / "outbox.db").state == "ok"
        assert list(tmp_path.iterdir()) == []

    def test_what_waits_is_counted_and_stays(self, tmp_path):
        path = tmp_path / "outbox.db"
        outbox = Outbox(path, 10**6, 86_400)
        outbox.put("a/b", "1")
        outbox.put("a/b", "2")
        assert self.look(path) == Check("outbox", "ok", f"{path}: in use by the running daemon")
        outbox.close()
        assert "2 messages wait" in self.look(path).what
        assert "2 messages wait" in self.look(path).what
        again = Outbox(path, 10**6, 86_400)
        assert again.stock().messages == 2
        again.close()
        assert [file.name for file in tmp_path.iterdir()] == ["outbox.db"]

    def test_one_that_is_damaged_is_told_and_not_touched(self, tmp_path):
        path = tmp_path / "outbox.db"
        path.write_bytes(damaged := b"SQLite format 3\0" + b"no database" * 1000)
        check = self.look(path)
        assert (check.state, "damaged" in check.what) == ("warn", True)
        assert path.read_bytes() == damaged

    def test_a_file_of_another_kind_is_told_for_it_will_be_refused(self, tmp_path):
        (tmp_path / "letters").write_bytes(b"no database" * 1000)
        check = self.look(tmp_path / "letters")
        assert (check.state, "is a file of another kind" in check.what) == ("fail", True)

    def test_a_folder_that_takes_none_is_told(self, tmp_path):
        (tmp_path / "file").touch()
        assert self.look(tmp_path / "file" / "outbox.db").state == "fail"

    def test_another_programs_database_is_no_outbox_and_no_crash(self, tmp_path):
        with sqlite3.connect(tmp_path / "other.db") as db:
            db.execute("CREATE TABLE message (x)")
        db.close()
        assert self.look(tmp_path / "other.db").state == "warn"


SETTING = {"disk": "outbox.path", "clips": "clips.folder", "score log": "log_scores.folder"}
WRITES = {
    "disk": lambda folder, service: list(computer.outbox(folder / "outbox.db", 64.0, service))[1],
    "clips": lambda folder, service: computer.clips(Settings(clips=ClipSettings(f"{folder}", max_mb=64.0)), service),
    "score log": lambda folder, service: computer.score_log(
        Settings(log_scores=ScoreLogSettings(f"{folder}", max_mb=64.0)), service
    ),
}


@pytest.mark.parametrize("name", WRITES)
class TestFolders:
    @pytest.mark.parametrize(
        ("folder", "said"),
        [
            ("/proc/x", "/proc/x: cannot be made: /proc takes no files"),
            ("{}/file/x", "{}/file/x: cannot be made: {}/file is no folder"),
            ("{}/file", "{}/file: cannot be written: {}/file is no folder"),
            ("{}/locked/x", "{}/locked/x: cannot be made: this user may not write in {}/locked"),
            ("{}/locked", "{}/locked: cannot be written: this user may not write in {}/locked"),
        ],
    )
    def test_why_one_cannot_be_written_is_said_with_what_to_do(self, tmp_path, monkeypatch, name, folder, said):
        (tmp_path / "file").touch()
        (tmp_path / "locked").mkdir()
        access = os.access  # who runs the tests may be root
        monkeypatch.setattr(os, "access", lambda path, how: not f"{path}".endswith("locked") and access(path, how))
        check = WRITES[name](Path(folder.format(tmp_path)), False)
        assert (check.name, check.state, check.what) == (name, "fail", said.format(tmp_path, tmp_path))
        assert check.fix.startswith(f"set another {SETTING[name]}")

    def test_one_that_can_be_written_or_made_is_not_made(self, tmp_path, name):
        assert WRITES[name](tmp_path, False).state == WRITES[name](tmp_path / "not" / "yet", False).state == "ok"
        assert list(tmp_path.iterdir()) == []

    def test_what_may_come_and_finds_no_room_is_told(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=5 * 10**6))
        check = WRITES[name](tmp_path, False)
        assert (check.state, check.what) == ("warn", f"{tmp_path}: 0 of 64 MB; 5 MB free")
        assert check.fix.startswith("make room, or set another ")

    def test_root_may_write_where_the_service_may_not(self, tmp_path, monkeypatch, name):
        unit = {"ProtectSystem": "strict", "ReadWritePaths": ""}
        monkeypatch.setattr(computer, "_unit", lambda *_: unit)
        check = WRITES[name](tmp_path, True)
        assert (check.state, check.what) == ("warn", f"{tmp_path}: the service's user may write only below {computer.STATE}")
        assert f"ReadWritePaths={tmp_path}" in check.fix
        unit["ReadWritePaths"] = f"-{tmp_path.parent} /srv"
        assert WRITES[name](tmp_path, True).state == "ok"


class TestWeb:
    """The port, and who may see the token."""

    @pytest.fixture
    def settings(self, tmp_path):
        pytest.importorskip("uvicorn", reason="needs packages: pip install -e '.[web]'")
        (tmp_path / "token").write_text("correct-horse-battery\n")
        (tmp_path / "token").chmod(0o600)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return WebSettings(f"127.0.0.1:{free.getsockname()[1]}", f"{tmp_path / 'token'}")

    def test_a_free_port_is_ok_and_stays_free(self, settings):
        for _ in range(2):
            check = web.examine(settings, False)
            assert (check.state, check.what) == ("ok", f"{settings.listen}: free, with the token of {settings.token_file}")

    def test_a_port_that_another_program_has_is_told(self, settings):
        with socket.create_server(("127.0.0.1", int(settings.listen.rpartition(":")[2]))) as other:
            threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
            check = web.examine(settings, False)
        assert (check.state, check.what) == ("fail", f"{settings.listen}: another program listens there")

    def test_one_that_the_running_daemon_has_is_right_while_it_gets_on(self, settings, loudness_model, monkeypatch):
        from detector.web import server

        daemon = server.Web(Settings(web=settings), Model(loudness_model, "cpu").description)
        daemon.look({"sources": {}}, {})
        daemon.start()
        check = web.examine(settings, False)
        assert (check.state, "in use by the running daemon" in check.what) == ("ok", True), check
        monkeypatch.setattr(server, "STILL_S", -1.0)
        check = web.examine(settings, False)
        assert (check.state, "the loop has stood still" in check.what) == ("fail", True), check
        daemon.stop()
        daemon._thread.join(5)

    @pytest.mark.parametrize(
        ("mode", "service", "state", "said"),
        [
            (0o640, False, "ok", ""),
            (0o644, False, "warn", "which every user here can read"),
            (0o644, True, "warn", "which every user here can read"),
            (0o600, True, "fail", "the service's user may not read it"),
        ],
    )
    def test_a_token_that_others_can_read_or_the_service_cannot_is_told(self, settings, mode, service, state, said):
        Path(settings.token_file).chmod(mode)
        check = web.examine(settings, service)
        assert (check.state, said in check.what) == (state, True), check
        assert ("LoadCredential=web_token:" in check.fix) == service

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"token_file": "/no/such"}, "web.token_file: /no/such cannot be read (No such file or directory)"),
            ({"listen": "0.0.0.0:0", "token_file": ""}, "web.listen: 0.0.0.0:0 is reached from other computers and has no token"),
        ],
    )
    def test_what_would_end_the_daemon_at_its_start_is_told(self, settings, change, said):
        check = web.examine(replace(settings, **change), False)
        assert (check.state, check.what) == ("fail", said)
        assert check.fix

    def test_packages_that_are_missing_are_told(self, monkeypatch):
        for name in ("detector.web.guard", "detector.web.server", "starlette", "starlette.datastructures"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delattr("detector.web.guard", raising=False)
        check = web.examine(WebSettings("127.0.0.1:0"), False)
        assert (check.state, check.fix) == ("fail", install("web"))

    def test_off_it_is_skipped(self):
        assert web.examine(WebSettings(), False).state == "skip"


def test_what_comes_from_a_broker_or_a_card_cannot_write_on_the_terminal():
    check = Check("device", "ok", "a card\x1b[2J\nfail  all", "\x07")
    assert (check.what, check.fix) == ("a card [2J fail  all", " ")


def test_every_line_that_the_troubleshooting_page_quotes_is_one_of_the_doctors():
    page = (Path(__file__).parents[2] / "docs" / "TROUBLESHOOTING.md").read_text()
    sources = "".join(file.read_text() for folder in ("doctor", "audio", "publish") for file in (PACKAGE / folder).glob("*.py"))
    sources += "".join((PACKAGE / name).read_text() for name in ("tables.py", "model.py"))
    known = ["settings", *NAMES, *(f"mic1 {name}" for name in (sound.DEVICE, sound.OPENS, sound.SAMPLES, sound.LEVEL))]
    quoted = re.findall(r"`(ok|warn|fail) ([^`]+)`", page)
    assert len(quoted) > 30
    for _, line in quoted:
        name = max((name for name in known if line.startswith(f"{name} ")), key=len, default="")
        assert name, line
        missing = [word for word in re.findall(r"[a-z]{3,}", line.removeprefix(name)) if word not in sources]
        assert not missing, line
