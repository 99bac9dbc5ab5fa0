"""What a live stream costs: start to first score, memory, CPU. Prints every figure the README quotes of them.

.venv/bin/python bench/live.py
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from detector.audio.level import Meter
from detector.audio.source import Block
from detector.model import Model, shipped

PROGRAM = [str(Path(sys.executable).with_name("urbandetect"))]
STREET = Path(__file__).parent.parent / "detector" / "demo" / "street.ogg"
RUNS = 5
LISTEN_S = 20


def help_s() -> float:
    """Seconds `urbandetect --help` takes."""
    began = time.monotonic()
    subprocess.run([*PROGRAM, "--help"], check=True, capture_output=True)
    return time.monotonic() - began


def live(listen_s: float) -> tuple[float, float, float]:
    """Seconds from process start to the first score of a real-time stream (its first hop of sound included), then resident MB and
    share of a core after `listen_s`. Every score opens an event here, so the first line printed is the first score."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as settings:
        labels = Model(shipped("urban.onnx"), "cpu").description.labels
        settings.write("".join(f"[thresholds.{label}]\non = 1e-9\nmin_on_s = 0.0\n" for label in labels))
        settings.flush()
        began = time.monotonic()
        command = [*PROGRAM, "run", "--config", settings.name, "--input", str(STREET), "--provider", "cpu"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first_s = time.monotonic() - began
            before = _cpu_s(process.pid)
            time.sleep(listen_s)
            share = (_cpu_s(process.pid) - before) / listen_s if listen_s else 0.0
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
            process.terminate()
            process.communicate()
    return first_s, resident, share


def levels() -> float:
    """Share of a core that A-weighting and the sound levels of a microphone take: 48 kHz in blocks of 50 ms."""
    rate, size = 48000, 2400
    sound = np.random.default_rng(0).normal(0, 0.1, LISTEN_S * rate).astype(np.float32)
    meter, began_s = Meter(rate, 1.0), time.process_time()
    for first in range(0, len(sound), size):
        meter.hear(Block(sound[first : first + size], first, 0.0))
    return (time.process_time() - began_s) / LISTEN_S


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    help_s()
    helps = [help_s() for _ in range(RUNS)]
    firsts = [live(0)[0] for _ in range(RUNS)]
    _, resident, share = live(LISTEN_S)
    print(f"machine                          {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"urbandetect --help               {statistics.median(helps):.2f} s (median of {RUNS}, worst {max(helps):.2f})")
    print(f"process start to first score     {statistics.median(firsts):.2f} s (median of {RUNS}, worst {max(firsts):.2f})")
    print(f"resident memory after {LISTEN_S} s       {resident:.0f} MB")
    print(f"CPU of a live stream             {share:.1%} of one core")
    print(f"of it for sound levels, 48 kHz   {levels():.2%} of one core")


if __name__ == "__main__":
    main()
