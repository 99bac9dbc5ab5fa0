"""How many live sources one daemon carries: real recordings in real time, the whole daemon, a real mosquitto.

    python bench/load.py [--sources 25 50 100 200 400] [--seconds 20]

Every source hears the demo's street from another moment on. For each number of sources: the daemon's share of a core, how late
events are told (the message's arrival after the last sample it needs), how much memory a source takes. It holds while nobody is
later than two hops.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import paho.mqtt.client as mqtt
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from parts import Broker, Running

from detector.model import Model, shipped
from detector.speed import cpu_s, resident_mb

STREET = Path(__file__).parents[1] / "detector" / "demo" / "street.ogg"
MOMENTS = 20
WARM_S = 5.0
"""A daemon of hundreds of sources has opened them all by then."""


def streets(folder: Path) -> list[Path]:
    """Of ten minutes each."""
    sound, rate = soundfile.read(STREET, dtype="int16")
    files = []
    for moment in range(MOMENTS):
        files.append(folder / f"street{moment}.wav")
        soundfile.write(files[-1], np.tile(np.roll(sound, moment * len(sound) // MOMENTS), 10), rate)
    return files


def settings(file: Path, streets: list[Path], sources: int, labels: tuple[str, ...]) -> Path:
    text = "".join(f'[[source]]\nname = "s{i}"\ninput = "{streets[i % len(streets)]}"\n' for i in range(sources))
    text += "".join(f'[thresholds."{label}"]\non = 0.2\noff = 0.19\nmin_on_s = 0.0\nmin_off_s = 0.0\n' for label in labels)
    file.write_text(text)
    return file


@click.command()
@click.option("--sources", multiple=True, type=int, default=(25, 50, 100, 200, 300, 400), show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
def main(sources: tuple[int, ...], seconds: float) -> None:
    d = Model(shipped("urban.onnx"), "cpu").description
    late_s: list[float] = []

    def arrived(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        event = json.loads(message.payload)
        if event["phase"] == "start":
            late_s.append(time.time() - datetime.fromisoformat(event["start"]).timestamp() - event["duration_s"])

    hop_ms = 1e3 * d.hop / d.sample_rate
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; a hop is {hop_ms:.1f} ms")
    print("sources  share of a core  events  late, median  99 %      most      MB a source")
    with tempfile.TemporaryDirectory() as name:
        folder, alone_mb = Path(name), 0.0
        files = streets(folder)
        for count in (1, *sources):
            programs: list[Running] = []

            def start(*command: object, programs: list[Running] = programs) -> Running:
                programs.append(Running(list(command), folder))
                return programs[-1]

            broker = Broker(folder, start)
            subscriber = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            subscriber.on_message = arrived
            try:
                broker.start()
                subscriber.connect("127.0.0.1", broker.port)
                subscriber.subscribe("urbandetect/+/+/event", qos=1)
                subscriber.loop_start()
                config = settings(folder / "load.toml", files, count, d.labels)
                daemon = start("urbandetect", "run", "--config", config, "--mqtt", f"127.0.0.1:{broker.port}", "--provider", "cpu")
                time.sleep(WARM_S)
                late_s.clear()
                before_s, began_s = cpu_s(daemon.process.pid), time.monotonic()
                time.sleep(seconds)
                share = (cpu_s(daemon.process.pid) - before_s) / (time.monotonic() - began_s)
                now_mb = resident_mb(daemon.process.pid)
                alone_mb = alone_mb or now_mb
                late_ms = 1e3 * np.percentile(late_s, (50, 99, 100)) if late_s else np.full(3, np.nan)
                each_mb = (now_mb - alone_mb) / (count - 1) if count > 1 else now_mb
                numbers = "  ".join(f"{ms:8.0f} ms" for ms in late_ms)
                print(f"{count:7d}  {100 * share:13.1f} %  {len(late_s):6d}  {numbers}  {each_mb:6.2f}", flush=True)
            finally:
                subscriber.loop_stop()
                for program in programs:
                    program.kill()


if __name__ == "__main__":
    main()
