"""How long from the last sample that an event needs to its message at a subscriber: through the whole daemon and a real mosquitto.

    python bench/latency.py [--seconds 120]

Sound is written to the daemon's standard input in real time, 5 ms at a time, at 48 kHz. An event begins with the rows of scores
that were above the threshold; what the last of them needs was written at a known moment. That row waits for up to one hop for its
last sample: what is printed comes after that sample.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE

import click
import numpy as np
import paho.mqtt.client as mqtt
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from parts import Broker, Running

from detector.model import Model, shipped

STREET = Path(__file__).parents[1] / "detector" / "demo" / "street.ogg"
RATE, BLOCK = 48_000, 240


def settings(folder: Path, labels: tuple[str, ...]) -> Path:
    """Thresholds that are often passed, and nothing that makes an event wait."""
    file = folder / "detector.toml"
    file.write_text("".join(f'[thresholds."{label}"]\non = 0.2\noff = 0.19\nmin_on_s = 0.0\nmin_off_s = 0.0\n' for label in labels))
    return file


@click.command()
@click.option("--seconds", default=120, show_default=True)
def main(seconds: int) -> None:
    d = Model(shipped("urban.onnx"), "cpu").description
    sound, own_rate = soundfile.read(STREET, dtype="float32")
    loop = (np.clip(soxr.resample(sound, own_rate, RATE), -1, 1) * 32767).astype("<i2")
    written_s: list[float] = []
    arrived: list[tuple[float, dict[str, object]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, programs = Path(name), []

        def start(*command: object) -> Running:
            programs.append(Running(list(command), folder, None, None))
            return programs[-1]

        try:
            broker = Broker(folder, start)
            broker.start()
            subscriber = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            subscriber.on_message = lambda *given: arrived.append((time.monotonic(), json.loads(given[2].payload)))
            subscriber.connect("127.0.0.1", broker.port)
            subscriber.subscribe("urbandetect/+/+/event")
            subscriber.loop_start()
            options = [
                "--config",
                settings(folder, d.labels),
                "--input",
                "-",
                "--mqtt",
                f"127.0.0.1:{broker.port}",
                "--provider",
                "cpu",
            ]
            environment = {"XDG_STATE_HOME": name}
            daemon = Running(["urbandetect", "run", *options], folder, environment, PIPE)
            programs.append(daemon)
            header = (
                b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0"
                + RATE.to_bytes(4, "little")
                + (2 * RATE).to_bytes(4, "little")
            )
            daemon.process.stdin.write(header + b"\x02\0\x10\0data\xff\xff\xff\xff")
            began_s = time.monotonic() + 1.0
            for block in range(seconds * RATE // BLOCK):
                time.sleep(max(0.0, began_s + (block + 1) * BLOCK / RATE - time.monotonic()))
                daemon.process.stdin.write(np.take(loop, range(block * BLOCK, (block + 1) * BLOCK), mode="wrap").tobytes())
                daemon.process.stdin.flush()
                written_s.append(time.monotonic())
            time.sleep(1.0)
            subscriber.loop_stop()
        finally:
            for program in programs:
                program.kill()
    latencies_ms = []
    for at_s, event in arrived:
        if event["phase"] == "start":
            onset = int(str(event["id"]).rsplit("-", 1)[1])
            needed_s = onset / d.sample_rate + float(str(event["duration_s"]))
            latencies_ms.append(1e3 * (at_s - written_s[min(len(written_s) - 1, int(needed_s * RATE / BLOCK))]))
    median, p99, worst = np.percentile(latencies_ms, (50, 99, 100))
    hop_ms = 1e3 * d.hop / d.sample_rate
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; a hop is {hop_ms:.1f} ms")
    print(f"{len(latencies_ms)} events: {median:.1f} ms in the median, {p99:.1f} ms at most for 99 %, {worst:.1f} ms at most")


if __name__ == "__main__":
    main()
