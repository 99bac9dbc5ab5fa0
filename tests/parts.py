"""Real parts without hardware: mosquitto on a free port of this computer, and microphones that the real PortAudio opens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

PATIENCE_S = 15.0
"""How long anything may take that has no promised time: generous, for busy computers."""


class Running:
    """A program under way. Its lines are read as they come; whatever is still running at the end of a test is killed."""

    def __init__(
        self, command: list[object], folder: Path, environment: dict[str, str] | None = None, stdin: int | None = None
    ) -> None:
        self.errors = folder / f"stderr-{time.monotonic_ns()}"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | (environment or {}),
                stdin=stdin or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, wanted: Callable[[str], object], within_s: float = PATIENCE_S, after: int = 0) -> int:
        """The number of the first line, counted from `after`, that is `wanted`."""
        with self._news:
            found = self._news.wait_for(
                lambda: next(((i,) for i in range(after, len(self.lines)) if wanted(self.lines[i])), None), within_s
            )
        assert found, f"not within {within_s} s:\n" + "\n".join([*self.lines, self.errors.read_text()])
        return found[0]

    def say(self, samples: np.ndarray) -> None:
        """Samples into its standard input, as 16 bit."""
        assert self.process.stdin
        self.process.stdin.write((samples * 32767).astype("<i2").tobytes())
        self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, within_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended and all its lines are here."""
        if self.process.stdin:
            self.process.stdin.close()
        code = self.process.wait(within_s)
        self._reader.join(within_s)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream and not stream.closed:
                stream.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a program; it is gone when the test is."""
    running: list[Running] = []

    def run(*command: object, env: dict[str, str] | None = None, stdin: int | None = None) -> Running:
        running.append(Running(list(command), tmp_path, env, stdin))
        return running[-1]

    yield run
    for program in running:
        program.kill()


@pytest.fixture
def daemon(start: Callable[..., Running], loudness_model: Path) -> Callable[..., Running]:
    """`urbandetect run` with the loudness model; with `--input -` it hears 8 kHz WAV from its `say`."""

    def run(*options: object, env: dict[str, str] | None = None) -> Running:
        piped = "-" in options
        program = start(
            "urbandetect",
            "run",
            "--model",
            loudness_model,
            *options,
            env=env,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
        )
        if piped:
            header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0" + (8000).to_bytes(4, "little")
            header += (16000).to_bytes(4, "little") + b"\x02\0\x10\0data\xff\xff\xff\xff"
            program.process.stdin.write(header)
            program.process.stdin.flush()
        return program

    return run


@dataclass
class Broker:
    """mosquitto. It can be killed and started again on the same port."""

    folder: Path
    start_program: Callable[..., Running]
    port: int = 0
    program: Running | None = None

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self, user: str = "", password: str = "") -> None:
        config = [f"listener {self.port} 127.0.0.1", "user root", f"allow_anonymous {'false' if user else 'true'}"]
        if user:
            subprocess.run(["mosquitto_passwd", "-c", "-b", self.folder / "users", user, password], check=True, capture_output=True)
            config.append(f"password_file {self.folder / 'users'}")
        file = self.folder / "mosquitto.conf"
        file.write_text("\n".join(config) + "\n")
        self.program = self.start_program(_mosquitto(), "-c", file)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.program.process.poll() is None, self.program.errors.read_text()
                assert time.monotonic() < deadline, "mosquitto does not start"
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        assert self.program
        self.program.kill()

    def witness(self, *options: object) -> Running:
        """An independent subscriber to everything: lines of `retained topic payload`."""
        options = (
            "-V",
            "5",
            "--retain-as-published",
            "-q",
            "1",
            "-t",
            "#",
            "-t",
            "$SYS/broker/version",
            "-F",
            "%r %t %p",
            *options,
        )
        program = self.start_program("mosquitto_sub", "-h", "127.0.0.1", "-p", self.port, *options)
        program.wait_for(lambda line: "$SYS/broker/version" in line)
        return program


def _mosquitto() -> str | None:
    return shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


@pytest.fixture
def broker(tmp_path: Path, start: Callable[..., Running]) -> Broker:
    if not (_mosquitto() and shutil.which("mosquitto_sub")):
        pytest.skip("needs mosquitto: apt install mosquitto mosquitto-clients")
    return Broker(tmp_path, start)


@pytest.fixture(scope="session")
def rtfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ALSA plugin of pcm_rtfile.c, built."""
    plugin = tmp_path_factory.mktemp("alsa") / "libasound_module_pcm_rtfile.so"
    source = Path(__file__).with_name("pcm_rtfile.c")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", plugin, source, "-lasound"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a compiler and ALSA: apt install gcc libc6-dev libasound2-dev")
    from ctypes.util import find_library

    if not find_library("portaudio"):
        pytest.skip("needs PortAudio: apt install libportaudio2")
    return plugin


@dataclass
class Microphone:
    """Cards 1, 2 ... that all play the same 48 kHz sound in a loop."""

    folder: Path
    plugin: Path
    cards: tuple[str, ...] = ("Street USB Mic",)

    @property
    def env(self) -> dict[str, str]:
        """What makes ALSA see these cards; read when PortAudio starts."""
        body = f'type rtfile file "{self.folder / "sound.raw"}" rate 48000 control "{self.folder / "control"}"'
        config = f'</usr/share/alsa/alsa.conf>\npcm_type.rtfile {{ lib "{self.plugin}" }}\n'
        for number, card in enumerate(self.cards, 1):  # PortAudio lists the first name and opens it as the second with arguments
            config += f'pcm."{card}: Audio (hw:{number},0)" {{ {body} hint {{ show on description "{card}" }} }}\n'
            config += f'pcm."{card}" {{ @args [ A B ] @args.A {{ type string }} @args.B {{ type string }} {body} }}\n'
        (self.folder / "asound.conf").write_text(config)
        return {"ALSA_CONFIG_PATH": str(self.folder / "asound.conf")}

    def hears(self, samples: np.ndarray) -> None:
        """48 kHz, from now on, of a program started later."""
        (samples * 32767).astype("<i2").tofile(self.folder / "sound.raw")

    def fault(self, what: str) -> None:
        """stall, silence, unplug, or nothing to end it."""
        (self.folder / "control.new").write_text(what)
        (self.folder / "control.new").replace(self.folder / "control")


@pytest.fixture
def microphone(tmp_path: Path, rtfile: Path) -> Microphone:
    return Microphone(tmp_path, rtfile)


@pytest.fixture
def events() -> Callable[[list[str]], list[dict[str, object]]]:
    """The events among JSON lines or among a witness's lines."""

    def parse(lines: list[str]) -> list[dict[str, object]]:
        return [json.loads(line[line.index("{") :]) for line in lines if '"phase"' in line]

    return parse
