"""What searching recordings costs: memory by a recording's length, time by their number and by processes.

.venv/bin/python bench/scan.py            # about five minutes; --quick: one
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile

STREET = Path(__file__).parent.parent / "detector" / "demo" / "street.ogg"
CHILD = """
import resource, sys
from detector.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def street(path: Path, seconds: float) -> None:
    """So much of the demo's street, over and over, as 16 bit FLAC."""
    sound, rate = soundfile.read(STREET, dtype="int16")
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        left = round(seconds * rate)
        while left > 0:
            file.write(sound[:left])
            left -= len(sound[:left])


def scan(folder: Path, *options: object) -> tuple[float, float]:
    """Seconds and peak resident MB of the program over these."""
    command = [sys.executable, "-c", CHILD, "scan", "--provider", "cpu", *map(str, options)]
    began_s = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.monotonic() - began_s, float(done.stderr.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "soundfile", "soxr"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}, "
        f"load {os.getloadavg()[0]:.1f} before it began"
    )
    print("\n| one recording | seconds | x real time | peak resident MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seconds in (1, 60, 3600) if quick else (1, 60, 3600, 36_000):
            street(folder / "one.flac", seconds)
            took_s, peak = scan(folder, "one.flac")
            print(f"| {seconds:,} s | {took_s:.2f} | {seconds / took_s:.0f} | {peak:.0f} |")
        (folder / "one.flac").unlink()
        print("\n| recordings of 10 s | --jobs | seconds | ms each |\n|---|---|---|---|")
        street(folder / "ten.flac", 10)
        (folder / "in").mkdir()
        for count in (10, 100) if quick else (10, 100, 1000):
            for number in range(count):
                if not (folder / "in" / f"{number}.flac").exists():
                    shutil.copy(folder / "ten.flac", folder / "in" / f"{number}.flac")
            for jobs in (1, 2):
                took_s, _ = scan(folder, "in", "--jobs", jobs, "--out", f"{count}-{jobs}.jsonl")
                print(f"| {count:,} | {jobs} | {took_s:.2f} | {1000 * took_s / count:.1f} |")
        shutil.rmtree(folder / "in")
        print("\n| 24 recordings of 10 minutes | --jobs | median seconds | x real time |\n|---|---|---|---|")
        (folder / "in").mkdir()
        for number in range(24):
            street(folder / "in" / f"{number}.flac", 600)
        rounds = [[scan(folder, "in", "--jobs", jobs)[0] for jobs in (1, 2)] for _ in range(3)]
        one_s, two_s = np.median(np.array(rounds), axis=0)
        for jobs, took_s in ((1, one_s), (2, two_s)):
            print(f"| | {jobs} | {took_s:.2f} | {24 * 600 / took_s:.0f} |")
        print(f"\n2 jobs against 1: {one_s / two_s:.2f} times")


if __name__ == "__main__":
    main()
