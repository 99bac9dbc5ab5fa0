"""The service as deploy/systemd installs it, under a real systemd."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import PATIENCE_S, Broker, Card, Microphone, Running
from systemd_parts import PYTHON, TESTS, Machine

pytestmark = pytest.mark.xdist_group("systemd")  # one machine serves them all
DEPLOY = TESTS / "checkout" / "deploy" / "systemd"
WATCHDOG_S, RESTART_S = 3, 0.2
FOR_TESTS = f"""
[Service]
Environment={" ".join(f"{name}={value}" for name, value in PYTHON.items())} ALSA_CONFIG_PATH={TESTS}/shared/asound.conf
WatchdogSec={WATCHDOG_S}
RestartSec={RESTART_S}
"""
WITHOUT_PIP = 'python3() { [ "$2" != venv ] || set -- "$@" --without-pip; command python3 "$@"; }; export -f python3'
"""Makes an environment in which pip fails."""
SETTINGS = f'node = "street"\n[model]\npath = "{TESTS}/shared/loudness.onnx"\n'


@dataclass
class Service:
    """The installed service, and the microphone that it hears."""

    machine: Machine
    microphone: Microphone

    def file(self, path: str) -> Path:
        return self.machine.root / path.removeprefix("/")

    def show(self, name: str) -> str:
        return self.machine.ask("systemctl", "show", "urbandetect", "--value", f"--property={name}")

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    @property
    def process(self) -> Path:
        return self.file(f"/proc/{self.pid}")

    def journal(self) -> str:
        return self.machine.ask("journalctl", "--unit=urbandetect", "--no-pager", "--lines=30", "--output=cat")

    def wait_for(self, what: str, wanted: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s\n{self.journal()}"
            time.sleep(0.05)

    def plug(self, *cards: Card) -> None:
        """These are the microphones now."""
        self.microphone.plug(*cards)
        config = self.microphone.folder / "asound.conf"
        config.write_text(config.read_text().replace(str(self.microphone.folder), f"{TESTS}/shared"))

    def start(self, settings: str, password: str = "") -> None:
        """Returns when it says that it is ready."""
        self.file("/etc/urbandetect/detector.toml").write_text(settings)
        self.file("/etc/urbandetect/mqtt_password").write_text(password)
        assert self.machine.run("systemctl", "start", "urbandetect").returncode == 0, self.journal()

    def is_back(self, before: int) -> bool:
        """Whether another process than `before` is ready."""
        return self.pid not in (0, before) and self.show("ActiveState") == "active"


@pytest.fixture
def installed(machine, rtfile, loudness_model, bursts) -> Service:
    """Installed if it is not: runs with the installer's settings and without a microphone."""
    microphone = Microphone(machine.shared, machine.shared / rtfile.name)
    made = Service(machine, microphone)
    if not made.file("/opt/urbandetect").exists():
        shutil.copy(rtfile, microphone.plugin)
        shutil.copy(loudness_model, machine.shared / "loudness.onnx")
        microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
        made.plug()
        drop_in = made.file("/etc/systemd/system/urbandetect.service.d/tests.conf")
        drop_in.parent.mkdir(parents=True)
        drop_in.write_text(FOR_TESTS)
        machine.ask(DEPLOY / "install")
    return made


@pytest.fixture
def service(installed) -> Service:
    """Stopped, with nothing in its outbox; its microphone hears half a second of tone every second."""
    installed.machine.ask("systemctl", "stop", "urbandetect")
    shutil.rmtree(installed.file("/var/lib/private/urbandetect"), ignore_errors=True)
    installed.plug(Card())
    return installed


def publishing(broker: Broker, more: str = "") -> str:
    """Settings."""
    return f'{SETTINGS}[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n{more}'


def sequence(witness: Running, session: str) -> list[int]:
    """The running numbers of a session's events."""
    events = [json.loads(line[line.index("{") :]) for line in witness.lines if '"phase"' in line]
    return [event["seq"] for event in events if event["session"] == session]


def test_installed_it_runs_at_once_and_says_that_it_has_no_microphone(installed):
    shown = [installed.show(name) for name in ("Type", "ActiveState", "SubState", "UnitFileState")]
    assert shown == ["notify", "active", "running", "enabled"]
    installed.wait_for("what is missing in StatusText", lambda: "microphone" in installed.show("StatusText"))


def test_a_sound_becomes_an_event_at_a_broker_that_asks_for_a_password_which_nobody_else_sees(service, broker):
    secret = "a-secret-of-the-street"
    broker.start(user="street", password=secret)
    witness = broker.witness("-u", "street", "-P", secret)
    service.start(publishing(broker, 'username = "street"'), secret + "\n")
    witness.wait_for(lambda line: "urbandetect/street/mic1/event" in line and '"phase":"end"' in line)
    seen = [service.machine.ask("systemctl", "show", "urbandetect"), service.journal()]
    seen += [(service.process / name).read_text() for name in ("cmdline", "environ")]
    assert "CREDENTIALS_DIRECTORY" in seen[-1]
    assert not [text for text in seen if secret in text]


def test_without_a_broker_it_runs_says_so_and_tells_the_broker_when_there_is_one(service, broker):
    service.start(publishing(broker))
    service.wait_for("what is missing in StatusText", lambda: "broker" in service.show("StatusText"))
    assert service.show("ActiveState") == "active"
    broker.start()
    broker.witness().wait_for(lambda line: '"phase"' in line)


def test_the_doctor_takes_the_services_own_password_its_outbox_and_its_word_of_the_microphone(service, broker):
    secret = "a-secret-of-the-street"
    broker.start(user="street", password=secret)
    witness = broker.witness("-u", "street", "-P", secret)
    service.start(publishing(broker, 'username = "street"'), secret + "\n")
    witness.wait_for(lambda line: "urbandetect/street/health" in line and '"hearing": true' in line)
    service.wait_for("hearing in StatusText", lambda: "mic1 hearing" in service.show("StatusText"))
    service.microphone.fault("busy")
    try:
        command = ("/opt/urbandetect/venv/bin/urbandetect", "doctor", "--config", "/etc/urbandetect/detector.toml", "--json")
        env = {"ALSA_CONFIG_PATH": f"{TESTS}/shared/asound.conf"}
        done = service.machine.run(*command, env=env)
    finally:
        service.microphone.fault("")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, done.stderr) == (0, "")
    assert secret not in done.stdout
    assert checks["login"]["what"] == "user street with a password"
    assert checks["mic1 device"]["what"].startswith("the running daemon has it")
    assert checks["outbox"]["what"] == "/var/lib/urbandetect/outbox.db: in use by the running daemon"
    assert checks["service"]["what"].startswith("active (running): mic1 hearing")


def test_it_is_nobody_and_can_write_nowhere_but_to_its_state(service):
    service.start(SETTINGS)
    status = dict(line.split(":\t", 1) for line in (service.process / "status").read_text().splitlines() if ":\t" in line)
    uid, gid = status["Uid"].split()[0], status["Gid"].split()[0]
    assert int(uid) > 0
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    everyones = service.file("/srv/everyones")
    everyones.mkdir()
    everyones.chmod(0o777)
    as_it = ["nsenter", f"--target={service.pid}", "--mount", "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    folders = ("/var/lib/urbandetect", "/srv/everyones", "/opt/urbandetect", "/etc/urbandetect", "/var/lib", "/run", "/dev")
    written = [folder for folder in folders if service.machine.run(*as_it, "touch", f"{folder}/file").returncode == 0]
    assert written == ["/var/lib/urbandetect"]


def test_one_that_stands_still_is_killed_by_the_watchdog_and_started_again(service):
    service.start(SETTINGS)
    before, begin = service.pid, time.monotonic()
    service.machine.ask("kill", "-STOP", before)
    service.wait_for("another process", lambda: service.is_back(before))
    assert time.monotonic() - begin < WATCHDOG_S + RESTART_S + 4
    assert "Failed with result 'watchdog'" in service.journal()


def test_events_of_an_outage_survive_a_kill_and_reach_the_broker(service, broker):
    broker.start()
    witness = broker.witness()
    service.start(publishing(broker))
    first = witness.wait_for(lambda line: '"phase":"end"' in line)
    session = json.loads(witness.lines[first].split(" ", 2)[2])["session"]
    broker.kill()
    last, before = max(sequence(witness, session)), service.pid
    time.sleep(2.1)  # two more sounds, of two events each
    assert service.file("/var/lib/urbandetect/outbox.db").exists()
    service.machine.ask("kill", "-KILL", before)
    service.wait_for("another process", lambda: service.is_back(before))
    broker.start()
    witness = broker.witness()
    witness.wait_for(lambda line: '"phase"' in line and session not in line)
    later = [number for number in sequence(witness, session) if number > last]
    assert len(later) >= 3
    assert later == list(range(last + 1, last + 1 + len(later)))


def test_a_reload_keeps_the_process_and_it_hears_on(service, broker):
    broker.start()
    witness = broker.witness()
    service.start(publishing(broker))
    before = service.pid
    witness.wait_for(lambda line: '"phase"' in line)
    service.machine.ask("systemctl", "reload", "urbandetect")
    service.wait_for("the reload in the journal", lambda: "settings read again" in service.journal())
    witness.wait_for(lambda line: '"phase"' in line, after=len(witness.lines))
    assert (service.pid, service.show("ActiveState")) == (before, "active")


def test_wrong_settings_end_it_once_and_it_says_why(service):
    service.file("/etc/urbandetect/detector.toml").write_text("no_such_key = 1\n")
    assert service.machine.run("systemctl", "start", "urbandetect").returncode != 0
    service.wait_for("failed", lambda: service.show("SubState") == "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("78", "0")
    assert "/etc/urbandetect/detector.toml: unknown key no_such_key" in service.journal()


@pytest.mark.parametrize("gpu", [False, True], ids=["plain", "gpu"])
def test_the_shipped_unit_is_right_to_the_last_key_and_hardened(service, gpu):
    drop_in = service.file("/etc/systemd/system/urbandetect.service.d/gpu.conf")
    if gpu:
        shutil.copy(service.file(f"{DEPLOY}/gpu.conf"), drop_in)
    service.machine.ask("systemd-analyze", "verify", "--recursive-errors=no", "urbandetect.service")
    service.machine.ask("systemd-analyze", "security", "--offline=true", "--threshold=20", "urbandetect.service")
    drop_in.unlink(missing_ok=True)


def test_an_upgrade_that_fails_changes_nothing_and_one_that_works_keeps_the_settings(service):
    service.start(SETTINGS, "secret")
    program = service.file("/opt/urbandetect")
    before, link = service.pid, (program / "venv").readlink()
    failed = service.machine.run("bash", "-c", f'{WITHOUT_PIP}; "$0"', DEPLOY / "install")
    said = failed.stderr.splitlines()[-1]
    assert (failed.returncode, said) == (75, "urbandetect: pip could not install urbandetect; nothing was changed")
    assert (service.pid, (program / "venv").readlink()) == (before, link)
    assert {entry.name for entry in program.iterdir()} == {"venv", link.name}

    service.machine.ask(DEPLOY / "install")
    assert service.is_back(before)
    assert (program / "venv").readlink() != link
    assert {entry.name for entry in program.iterdir()} == {"venv", (program / "venv").readlink().name}
    assert service.file("/etc/urbandetect/detector.toml").read_text() == SETTINGS
    password = service.file("/etc/urbandetect/mqtt_password")
    assert (password.read_text(), password.stat().st_mode & 0o777) == ("secret", 0o600)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ('"$0" --cuda', 64, "--cuda is no option"),
        ('setpriv --reuid=65534 --regid=65534 --clear-groups "$0"', 78, "only be installed by root"),
        ('mount -t tmpfs tmpfs /run/systemd; "$0"', 78, "is not run by systemd"),
        ('python3() { false; }; export -f python3; "$0"', 78, "urbandetect needs Python 3.11 or later"),
        ('python3() { [[ $2 != *prefix* ]] || echo /root/py; }; export -f python3; "$0"', 78, "the service may not read /root/py"),
    ],
    ids=["option", "root", "systemd", "python", "home"],
)
def test_what_keeps_the_installer_from_its_work_is_one_line(machine, command, code, said):
    refused = machine.run("unshare", "--mount", "bash", "-c", command, DEPLOY / "install")
    assert (refused.returncode, refused.stdout) == (code, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("urbandetect: ")
    assert said in line


def test_the_uninstaller_keeps_what_is_the_users_unless_it_is_told_to_purge(service):
    service.start(SETTINGS, "secret")
    for _ in range(2):
        service.machine.ask(DEPLOY / "uninstall")
    assert service.show("LoadState") == "not-found"
    assert not service.file("/opt/urbandetect").exists()
    assert service.file("/etc/urbandetect/detector.toml").read_text() == SETTINGS
    assert service.file("/etc/urbandetect/mqtt_password").read_text() == "secret"
    assert service.file("/var/lib/private/urbandetect").exists()
    assert service.file("/etc/systemd/system/urbandetect.service.d/tests.conf").exists()
    for _ in range(2):
        service.machine.ask(DEPLOY / "uninstall", "--purge")
    users = ("/etc/urbandetect", "/var/lib/private/urbandetect", "/etc/systemd/system/urbandetect.service.d")
    assert not [path for path in users if service.file(path).exists()]
    assert not service.file("/var/lib/urbandetect").is_symlink()
