"""Real parts without hardware: mosquitto on a free port of this computer, and microphones that the real PortAudio opens."""

from __future__ import annotations

import contextlib
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


OURS = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


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
                env=os.environ | OURS | {"XDG_STATE_HOME": str(folder)} | (environment or {}),
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

    def wait_for_error(self, text: str, meanwhile: Callable[[], object] = lambda: None, within_s: float = PATIENCE_S) -> None:
        """Until its standard error holds `text`; meanwhile, do something every 20 ms."""
        deadline_s = time.monotonic() + within_s
        while text not in self.errors.read_text():
            assert time.monotonic() < deadline_s, self.errors.read_text()
            meanwhile()
            time.sleep(0.02)

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

    def start(self, user: str = "", password: str = "", *more: str) -> None:
        """more: lines of its configuration."""
        config = [f"listener {self.port} 127.0.0.1", "user root", f"allow_anonymous {'false' if user else 'true'}", *more]
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


@dataclass(frozen=True)
class Card:
    """A sound card that the test microphone is. channels: the fewest and the most it can be opened with; speaker: the rate of its
    playback side, 0 without one."""

    name: str = "Street USB Mic"
    number: int = 1
    rate: int = 48000
    channels: str = "1 4"
    speaker: int = 0


@dataclass
class Microphone:
    """Cards that all play the same sound in a loop, and suffer the same faults."""

    folder: Path
    plugin: Path
    cards: tuple[Card, ...] = (Card(),)
    sample: str = "s16"

    @property
    def env(self) -> dict[str, str]:
        """What makes ALSA see these cards."""
        self.plug(*self.cards)
        return {"ALSA_CONFIG_PATH": str(self.folder / "asound.conf")}

    def plug(self, *cards: Card) -> None:
        """These are the cards now. Read when PortAudio starts, and when it looks again."""
        self.cards = cards
        config = f'</usr/share/alsa/alsa.conf>\npcm_type.rtfile {{ lib "{self.plugin}" }}\n'
        for card in cards:  # PortAudio lists the first name and opens it as the second with arguments
            body = f'type rtfile file "{self.folder / "sound.raw"}" control "{self.folder / "control"}" format {self.sample} '
            body += f'rate {card.rate} channels "{card.channels}" speaker {card.speaker}'
            config += f'pcm."{card.name}: Audio (hw:{card.number},0)" {{ {body} hint {{ show on description "{card.name}" }} }}\n'
            config += f'pcm."{card.name}" {{ @args [ A B ] @args.A {{ type string }} @args.B {{ type string }} {body} }}\n'
        _replace(self.folder / "asound.conf", config)

    def hears(self, samples: np.ndarray) -> None:
        """At the cards' rate, from now on, of a program started later."""
        raw = samples.astype("<f4") if self.sample == "float" else (samples * 32767).astype("<i2")
        raw.tofile(self.folder / "sound.raw")

    def fault(self, what: str) -> None:
        """A word of pcm_rtfile.c, or nothing to end it."""
        _replace(self.folder / "control", what)


def _replace(file: Path, text: str) -> None:
    """At once: whoever reads it finds the old text or the new."""
    (new := file.with_name(file.name + ".new")).write_text(text)
    new.replace(file)


@pytest.fixture
def microphone(tmp_path: Path, rtfile: Path) -> Microphone:
    return Microphone(tmp_path, rtfile)


@pytest.fixture
def events() -> Callable[[list[str]], list[dict[str, object]]]:
    """The events among JSON lines or among a witness's lines."""

    def parse(lines: list[str]) -> list[dict[str, object]]:
        return [json.loads(line[line.index("{") :]) for line in lines if '"phase"' in line]

    return parse


class Wire:
    """A line to a broker that can be cut, fall silent, or lead to a broker of before MQTT 5."""

    CONNECT, PUBLISH, PUBACK = 1, 3, 4

    def __init__(self, to_port: int) -> None:
        self.lets: Callable[[str, bytes], str] = lambda way, packet: "pass"
        """What becomes of a packet that goes "up" to the broker or "down": pass, drop, or cut (the connection, unpassed)."""
        self.silent = False
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection there is now."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(("127.0.0.1", self._to_port))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for way, source, sink in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._carry, args=(way, source, sink), daemon=True).start()

    def _carry(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            reader = source.makefile("rb")
            while head := reader.read(1):
                length = shift = 0
                while True:
                    byte = reader.read(1)
                    if not byte:
                        return
                    head += byte
                    length |= (byte[0] & 127) << shift
                    shift += 7
                    if byte[0] < 128:
                        break
                packet = head + reader.read(length)
                while self.silent:
                    time.sleep(0.01)
                what = self.lets(way, packet)
                if what == "pass":
                    sink.sendall(packet)
                elif what == "old":  # as a broker answers that knows 3.1.1 alone
                    source.sendall(b"\x20\x02\x00\x01")
                    return
                elif what == "cut":
                    sink.shutdown(socket.SHUT_RDWR)
                    return


@pytest.fixture
def wire() -> Iterator[Callable[[int], Wire]]:
    """A line to the broker on a port."""
    wires: list[Wire] = []

    def lay(to_port: int) -> Wire:
        wires.append(Wire(to_port))
        return wires[-1]

    yield lay
    for one in wires:
        one.close()


@pytest.fixture(scope="session")
def clock_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of clock_shim.c, built."""
    library = tmp_path_factory.mktemp("clock") / "clock_shim.so"
    try:
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("clock_shim.c")],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a compiler: apt install gcc libc6-dev")
    return library


@dataclass
class Clock:
    """The time of day of a program started with `env`, and whether its computer sleeps."""

    file: Path
    library: Path
    set_s: int = 0
    slept_s: int = 0

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_SHIM": str(self.file)}

    def step(self, seconds: int) -> None:
        self.set_s += seconds
        self._write()

    def sleep(self, seconds: int) -> None:
        self.slept_s += seconds
        self._write()

    def _write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{self.set_s} {self.slept_s}")
        new.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path, clock_shim: Path) -> Clock:
    return Clock(tmp_path / "clock", clock_shim)


def as_nobody() -> list[str]:
    """Start a program as one whom permissions stop: the superuser is stopped by none."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("needs setpriv: apt install util-linux")
    return ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
