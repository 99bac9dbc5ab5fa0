"""What clips cost: writing one, holding the sound for them, a folder of 100,000 of them, and a live stream with them on.

.venv/bin/python bench/clips.py
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import soundfile
import soxr

from detector.audio.source import Block
from detector.clips.cut import Cut, Cutter, Form
from detector.clips.flac import flac, sealer
from detector.clips.shelf import Shelf, name_of
from detector.event import timestamp

STREET = Path(__file__).parent.parent / "detector" / "demo" / "street.ogg"
RATE, CLIP_S, BLOCK_S = 48_000, 10.0, 0.05
FILES, LABELS = 100_000, 10
LISTEN_S = 30


def street(seconds: float) -> np.ndarray:
    """The demo's street at RATE, as a card of 16 bits gives it."""
    samples, own = soundfile.read(STREET, dtype="float32")
    sound = np.resize(soxr.resample(samples, own, RATE), round(seconds * RATE))
    return (np.round(sound * 32767) / 32768).astype(np.float32)


def event(number: int = 0) -> dict[str, str]:
    label = f"label{number % LABELS}"
    start = timestamp(datetime.fromtimestamp(1_790_000_000 + 10 * number, UTC))
    session = f"{number:012x}"
    return {"label": label, "start": start, "node": "n", "source": "mic1", "session": session, "id": f"{session}-{label}-0"}


def cpu_s(work: Callable[[], object], times: int) -> float:
    """Of this process, a call."""
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times


def writing() -> None:
    sound = street(CLIP_S)
    whole = Cut("", event(), RATE, 0, 2 * RATE, 8 * RATE, (sound,), "")
    print(f"a clip of {CLIP_S:g} s at {RATE} Hz: {1e3 * cpu_s(lambda: flac(whole), 20):.0f} ms of a core to encode")
    try:
        import pyrage

        seal, data = sealer(str(pyrage.x25519.Identity.generate().to_public())), flac(whole)
        print(f"  and {1e3 * cpu_s(lambda: seal(data), 20):.1f} ms to encrypt")
    except ImportError:
        print("  (not encrypted: pip install -e '.[age]')")
    sizes = {}
    for bits in ("PCM_16", "PCM_24"):
        out = io.BytesIO()
        soundfile.write(out, np.round(sound * 32768).astype(np.int32) << 16, RATE, bits, format="FLAC")
        sizes[bits] = len(out.getvalue())
    print(f"  {sizes['PCM_24'] / 1e6:.3f} MB as 24 bit, {sizes['PCM_16'] / 1e6:.3f} MB as 16 bit, of 16-bit samples")


def holding() -> None:
    cutter, block, hop = Cutter(RATE, 22_050, 2048, Form(2.0, 2.0, 30.0)), street(BLOCK_S), 2048
    most, step, seconds = 0, len(block), 600
    began = time.process_time()
    for number in range(round(seconds / BLOCK_S)):
        cutter.block(Block(block, number * step, 0.0))
        heard = round(number * BLOCK_S * 22_050) // hop * hop
        cutter.stepped(heard, 2 * hop, 10 * hop)
        most = max(most, cutter.held)
    took_s = time.process_time() - began
    print(f"nothing is heard: {4 * most / 1e6:.2f} MB held a source, {1e6 * took_s / (seconds / BLOCK_S):.0f} us a block")


def folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number in range(FILES):
            path = root / name_of(event(number), ".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 10)
        before_kb = _resident_kb(os.getpid())
        shelf = Shelf(root, FILES * 10, 1e9)
        shelf.lock()
        began = time.perf_counter()
        shelf.tidy(1_795_000_000)
        print(f"a folder of {FILES:,} clips: read at start in {time.perf_counter() - began:.2f} s", end="")
        print(f", {(_resident_kb(os.getpid()) - before_kb) / 1024:.0f} MB of memory")
        print(f"  to look whether one is too old: {1e6 * cpu_s(lambda: shelf.tidy(1_795_000_000), 100):.0f} us")
        began = time.perf_counter()
        for number in range(FILES, FILES + 100):
            shelf.write(name_of(event(number), ".flac"), b"x" * 10)
        print(f"  to write one and let the oldest go: {(time.perf_counter() - began) * 10:.2f} ms, the disk's sync among it")
        shelf.unlock()


def live(clips: bool) -> str:
    """Share of a core and resident memory of a daemon that hears the street in real time."""
    with tempfile.TemporaryDirectory() as name:
        text = "".join(f"[thresholds.{label}]\non = 0.3\n" for label in ("dog_bark", "siren", "children_playing"))
        (Path(name) / "detector.toml").write_text(text + f"[clips]\nfolder = '{Path(name) / 'clips' if clips else ''}'\n")
        sound = Path(name) / "street.wav"
        soundfile.write(sound, street(LISTEN_S + 10), RATE)
        command = [Path(sys.executable).with_name("urbandetect"), "run", "--input", sound, "--provider", "cpu"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=name)
        try:
            time.sleep(3)
            before = _cpu_s(process.pid)
            time.sleep(LISTEN_S)
            share = (_cpu_s(process.pid) - before) / LISTEN_S
            count = len(list(Path(name).rglob("*.flac")))
            return f"{100 * share:.1f} % of a core, {_resident_kb(process.pid) / 1024:.1f} MB, {count} clips in {LISTEN_S} s"
        finally:
            process.terminate()
            process.wait()


def _resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(f"{platform.machine()}, Python {platform.python_version()}, soundfile {soundfile.__version__}")
    writing()
    holding()
    folder()
    print(f"live, off: {live(False)}\nlive, on:  {live(True)}")
