"""A computer of its own that is run by systemd: a container over this computer's files, none of which it can change."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import PATIENCE_S

CHECKOUT = Path(__file__).parents[1]
TESTS = Path("/opt/tests")
"""Where the machine has what the tests bring: a Python, the packages that urbandetect needs, this checkout, microphones."""
PYTHON = {"PYTHONPATH": f"{TESTS}/hook", "LD_LIBRARY_PATH": f"{TESTS}/python/lib"}
"""What that Python needs to find those packages, and its own library."""
OURS = ("urbandetect-", "_editable_impl_urbandetect", "detector", "trainer")
"""What of the test environment's packages the installer brings itself."""
BOOT = """
mount -t tmpfs tmpfs "$1"
cd "$1"
shift
mkdir changes work root
mount -t overlay -o lowerdir=/,upperdir=changes,workdir=work overlay root
rm -rf root/etc/systemd/system/* root/etc/urbandetect root/opt/* root/srv/* root/var/lib/urbandetect root/var/lib/private/*
: > root/etc/machine-id
: > root/etc/fstab
exec setpriv --pdeathsig TERM systemd-nspawn --directory=root "$@"
"""
"""What this computer runs of its own stays out. Mounts of a namespace of its own and a signal at our death: nothing is left when
the tests are killed, either."""
OFF = "SIGRTMIN+14"
"""What a container's systemd takes as a cut of the power."""


@dataclass
class Machine:
    """root: its files, seen from here; shared: a folder of both, TESTS/shared there; leader: its first process, seen from here."""

    root: Path
    shared: Path
    leader: int

    def run(self, *command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command as root, in an environment that pip finds what it needs in and nothing else."""
        environment = {
            **PYTHON,
            "PATH": f"{TESTS}/python/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_BUILD_ISOLATION": "0",  # 0 is pip's way to say that this option is given
        } | (env or {})
        enter = ["nsenter", f"--target={self.leader}", "--all", "env", "--ignore-environment"]
        enter += [f"{name}={value}" for name, value in environment.items()]
        return subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, timeout=60)

    def ask(self, *command: object) -> str:
        """What a command that must succeed says."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One for all tests of a file; it shares this computer's network."""
    if not shutil.which("systemd-nspawn"):
        pytest.skip("needs systemd-nspawn: apt install systemd-container")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs root that may mount: run it by sudo and outside a container")
    folder, shared = tmp_path_factory.mktemp("machine"), tmp_path_factory.mktemp("shared")
    shared.chmod(0o755)
    site = sysconfig.get_path("platlib")
    brought = {"python": sys.base_prefix, "site": site, "checkout": CHECKOUT, "shared": shared}
    options = ["--boot", "--quiet", "--machine=urbandetect", "--console=pipe", "--notify-ready=yes", f"--kill-signal={OFF}"]
    options += ["--register=no", "--keep-unit", "--link-journal=no"]
    options += [*(f"--bind-ro={source}:{TESTS / name}" for name, source in brought.items()), "systemd.unit=basic.target"]
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(f"{short}/ready")
        ready.settimeout(PATIENCE_S)
        with (folder / "boot.log").open("wb") as log:
            nspawn = subprocess.Popen(
                ["unshare", "--mount", "sh", "-euc", BOOT, "sh", folder, *options],
                env=os.environ | {"NOTIFY_SOCKET": f"{short}/ready"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            said = ""
            while "READY=1" not in said:
                try:
                    said += ready.recv(4096).decode() + "\n"
                except TimeoutError:
                    pytest.fail(f"no systemd within {PATIENCE_S} s:\n{(folder / 'boot.log').read_text()}")
            leader = int(said.split("X_NSPAWN_LEADER_PID=")[1].split()[0])
            made = Machine(Path(f"/proc/{leader}/root"), shared, leader)
            _bring_packages(made, site)
            yield made
        finally:
            nspawn.terminate()
            nspawn.wait(PATIENCE_S)


def _bring_packages(machine: Machine, site: str) -> None:
    """Behind Python's own: an environment may hold a package that is named like one of them."""
    packages, hook = (machine.root / str(TESTS / name)[1:] for name in ("packages", "hook"))
    packages.mkdir()
    hook.mkdir()
    for entry in Path(site).iterdir():
        if not entry.name.startswith((*OURS, "pip")):
            (packages / entry.name).symlink_to(TESTS / "site" / entry.name)
    (hook / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(TESTS / 'packages')!r})\n")
