"""Does it run for years? The whole daemon with a real broker and random faults on the way to it, for an hour or for a day.

    python bench/soak.py --minutes 60      # real time, through PortAudio and a microphone without hardware
    python bench/soak.py --hours 24        # as fast as it goes, through a pipe

Needs what the tests need (`scripts/test` installs it). Prints a line for each tenth of the time and, at the end, what was promised:
every event told is delivered, the events are those of an offline run over the same sound, memory, threads and descriptors stay.
Exit code 1 when one is not kept.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from parts import Broker, Microphone, Running, Wire

from detector.audio.source import Block
from detector.model import Model, shipped
from detector.pipeline import Pipeline

STREET = Path(__file__).parents[1] / "detector" / "demo" / "street.ogg"
PIECE_S = 5
LOOP_S = 600
"""The microphone's sound begins again after so long."""
ON = 0.2
"""The threshold of every label here: lower than the model's own, for more events."""
GROWTH_MB = 1.0
"""What resident memory may grow in an hour after the first fifth of the time."""


def street(rate: int, seed: int) -> Iterator[np.ndarray]:
    """Pieces of PIECE_S of the demo's street, at any level, now and then silent: int16, without end, the same for a seed."""
    sound, own_rate = soundfile.read(STREET, dtype="float32")
    sound = soxr.resample(sound, own_rate, rate)
    dice = np.random.default_rng(seed)
    length = PIECE_S * rate
    while True:
        start = int(dice.integers(0, len(sound) - length))
        gain = 10 ** (dice.uniform(-20, 0) / 20) * (dice.random() > 0.1)
        yield (np.clip(sound[start : start + length] * gain, -1, 1) * 32767).astype("<i2")


class Offline:
    """The same sound through the same pipeline, without a daemon: what should have been told."""

    def __init__(self, model: Model, rate: int) -> None:
        levels = {label: replace(t, on=ON, off=min(ON, t.off)) for label, t in model.description.thresholds.items()}
        self._pipeline = Pipeline(model, 1, levels)
        self._pipeline.begin(0, rate)
        self._first = 0
        self.events: list[tuple[str, int, int]] = []

    def hear(self, samples: np.ndarray) -> None:
        block = Block(samples.astype(np.float32) / np.float32(32768), self._first, 0.0)
        self._first += len(samples)
        changes = self._pipeline.feed(0, block) + [change for _, change in self._pipeline.advance()]
        self.events += [(change.label, change.onset, change.offset) for change in changes if change.phase == "end"]


@dataclass
class Watch:
    """What the process uses, now and then: seconds of sound heard, resident MB, threads, descriptors."""

    run: Running
    heard_s: Callable[[], float]
    rows: list[tuple[float, float, int, int]] = field(default_factory=list)

    def look(self) -> tuple[float, float, int, int]:
        process = Path(f"/proc/{self.run.process.pid}")
        facts = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        row = (
            self.heard_s(),
            int(facts["VmRSS"].split()[0]) / 1024,
            int(facts["Threads"]),
            len(list((process / "fd").iterdir())),
        )
        self.rows.append(row)
        return row

    def growth_mb(self) -> float:
        """Per hour of sound, by a straight line through what came after the first fifth."""
        rows = self.rows[len(self.rows) // 5 :]
        hours = np.array([row[0] / 3600 for row in rows])
        return float(np.polyfit(hours, [row[1] for row in rows], 1)[0]) if np.ptp(hours) > 0 else 0.0


class Faults:
    """One after the other, at random moments, mean_s apart."""

    def __init__(self, broker: Broker, line: Wire, run: Running, mean_s: float, live: bool) -> None:
        self.done: Counter[str] = Counter()
        self._broker, self._line, self._daemon, self._mean_s = broker, line, run, mean_s
        self._dice = random.Random(1)
        self._kinds = [self.cut, self.silence, self.stand_still, self.restart, self.reload] + ([] if live else [self.pause])
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._end.wait(self._dice.expovariate(1 / self._mean_s)):
            kind = self._dice.choice(self._kinds)
            kind()
            self.done[kind.__name__] += 1

    def cut(self) -> None:
        self._line.cut()

    def silence(self) -> None:
        self._line.silent = True
        time.sleep(self._dice.uniform(1, 13))
        self._line.cut()
        self._line.silent = False

    def stand_still(self) -> None:
        self._broker.program.send(signal.SIGSTOP)
        time.sleep(self._dice.uniform(0.5, 12))
        self._broker.program.send(signal.SIGCONT)

    def restart(self) -> None:
        self._broker.program.send(signal.SIGTERM)
        self._broker.program.end()
        time.sleep(self._dice.uniform(0, 3))
        start_broker(self._broker)

    def reload(self) -> None:
        self._daemon.process.send_signal(signal.SIGHUP)

    def pause(self) -> None:
        self._daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(self._dice.uniform(0.5, 3))
        self._daemon.process.send_signal(signal.SIGCONT)


def start_broker(broker: Broker) -> None:
    """It keeps what the subscriber has not got yet over its restarts."""
    lines = ["persistence true", f"persistence_location {broker.folder}/", "max_queued_messages 0", "max_inflight_messages 1000"]
    broker.start("", "", *lines)


@click.command()
@click.option("--minutes", type=float, help="Of real time, through a microphone.")
@click.option("--hours", type=float, help="Of sound, as fast as it goes.")
@click.option("--seed", default=1, show_default=True)
def main(minutes: float | None, hours: float | None, seed: int) -> None:
    if (minutes is None) == (hours is None):
        raise click.UsageError("give --minutes or --hours")
    live = minutes is not None
    whole_s = minutes * 60 if minutes is not None else (hours or 0) * 3600
    running: list[Running] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def start(*command: object, env: dict[str, str] | None = None, stdin: int | None = None) -> Running:
            running.append(Running(list(command), folder, env, stdin))
            return running[-1]

        try:
            kept = soak(folder, start, whole_s, live, seed)
        finally:
            for program in running:
                program.kill()
    sys.exit(not kept)


def soak(folder: Path, start: Callable[..., Running], whole_s: float, live: bool, seed: int) -> bool:
    model = Model(shipped("urban.onnx"), "cpu")
    broker = Broker(folder, start)
    start_broker(broker)
    line = Wire(broker.port)
    topics = ("-t", "urbandetect/street/+/event", "-t", "urbandetect/street/health")
    kept = ("-V", "5", "-i", "witness", "-c", "-x", "4000000000", "-q", "1")  # for it, while the broker or the line is away
    witness = start("mosquitto_sub", "-h", "127.0.0.1", "-p", broker.port, *kept, *topics, "-F", "%t %p")
    thresholds = "".join(f"[thresholds.{label}]\non = {ON}\n" for label in model.description.labels)
    (folder / "detector.toml").write_text(
        f'node = "street"\n{thresholds}[mqtt]\nhost = "127.0.0.1"\nport = {line.port}\n[outbox]\npath = "./outbox.db"\n'
    )
    rate = 48_000 if live else model.description.sample_rate
    offline = Offline(model, rate)
    began_s = time.monotonic()
    if live:
        microphone = _microphone(folder)
        pieces = street(rate, seed)
        np.concatenate([next(pieces) for _ in range(LOOP_S // PIECE_S)]).tofile(folder / "sound.raw")
        run = start("urbandetect", "run", "--device", "hw:1", "--provider", "cpu", env=microphone.env)
        heard_s = lambda: time.monotonic() - began_s  # noqa: E731
    else:
        run = start("urbandetect", "run", "--input", "-", "--provider", "cpu", stdin=subprocess.PIPE)
        given = [0]
        heard_s = lambda: given[0] / rate  # noqa: E731
    watch, faults = Watch(run, heard_s), Faults(broker, line, run, 60 if live else 5, live)
    faults.start()
    how = "real time" if live else "as fast as it goes"
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {how}")
    print("hours of sound  resident MB  threads  descriptors  messages", flush=True)
    tenths = 1

    def tell() -> None:
        nonlocal tenths
        if heard_s() >= whole_s * tenths / 10:
            tenths += 1
            heard, resident_mb, threads, descriptors = watch.rows[-1]
            messages = sum("/event " in text for text in witness.lines)
            print(f"{heard / 3600:14.2f}  {resident_mb:11.1f}  {threads:7d}  {descriptors:11d}  {messages:8d}", flush=True)

    if live:
        while heard_s() < whole_s:
            time.sleep(10)
            watch.look()
            tell()
    else:
        _pipe_header(run, rate)
        for number, piece in enumerate(street(rate, seed)):
            if heard_s() >= whole_s:
                break
            run.process.stdin.write(piece.tobytes())
            run.process.stdin.flush()
            given[0] += len(piece)
            offline.hear(piece)
            if number % 12 == 0:
                watch.look()
                tell()
    faults.stop()
    if live:
        run.send(signal.SIGTERM)
    code = run.end(120)
    if code == 75 or live:  # what the broker has not taken is sent by the next
        start("urbandetect", "run", "--input", STREET, "--speed", "max", "--provider", "cpu").end(120)
    time.sleep(3)
    print(f"faults: {', '.join(f'{kind} {count}' for kind, count in sorted(faults.done.items()))}")
    events = [json.loads(text.split(" ", 1)[1]) for text in witness.lines if "/event " in text]
    until_s = _first_gap_s(witness.lines)
    said = Counter(line.split(": ", 2)[-1][:60] for line in run.errors.read_text().splitlines() if line.startswith("warning"))
    print("said: " + "; ".join(f"{count} x {text}" for text, count in said.most_common()))
    if live:  # until the last event that was told
        pieces, last = street(rate, seed), max(_span(event, model)[2] for event in events)
        loop = [next(pieces) for _ in range(LOOP_S // PIECE_S)]
        for number in range(math.ceil(last / model.description.sample_rate / PIECE_S) + 1):
            offline.hear(loop[number % len(loop)])
    kept = verdict(events, offline, watch, model, until_s) and code in (0, 75)
    print(f"exit code {code}, took {(time.monotonic() - began_s) / 60:.1f} min")
    return kept


def verdict(events: list[dict[str, Any]], offline: Offline, watch: Watch, model: Model, until_s: float) -> bool:
    """Print each promise and whether it was kept. until_s: when sound was missing first; past it no offline run hears the same."""
    session = events[0]["session"]
    told = {event["seq"]: event for event in events if event["session"] == session}
    again = len(events) - len({(event["id"], event["phase"]) for event in events})
    ended = {_span(event, model) for event in told.values() if event["phase"] == "end"}
    last = min(max(offset for _, _, offset in ended), until_s * model.description.sample_rate)
    cut_short = {span for span in ended if span[2] >= last - model.description.hop}  # by the end of the run, not by the sound
    expected = {span for span in offline.events if span[2] <= last - model.description.hop}
    missing, others = expected - ended, {span for span in ended - cut_short if span[2] <= last} - expected
    if until_s < float("inf"):
        print(f"the sound card had a gap after {until_s / 60:.1f} minutes: events are compared up to there")
    rows = watch.rows[len(watch.rows) // 5 :]
    threads, descriptors = [[row[column] for row in rows] for column in (2, 3)]
    growth_mb = watch.growth_mb()
    lost = max(told) - len(told)
    promises = [
        (not lost, f"{max(told)} messages told, {lost} of them not delivered, {again} delivered twice"),
        (not missing and not others, f"{len(expected)} events offline: {len(missing)} of them not told, {len(others)} others told"),
        (growth_mb < GROWTH_MB, f"resident memory grows by {growth_mb:+.2f} MB an hour of sound"),
        (max(threads) == min(threads), f"threads {min(threads)} to {max(threads)}"),
        (max(descriptors) <= min(descriptors) + 3, f"descriptors {min(descriptors)} to {max(descriptors)}"),
    ]
    for kept, promise in promises:
        print(f"{'kept  ' if kept else 'BROKEN'}  {promise}")
    return all(kept for kept, _ in promises)


def _first_gap_s(lines: list[str]) -> float:
    """About when the daemon first said that sound was missing, a little before that to be sure; never is infinite."""
    for line in lines:
        if "/health " in line:
            health = json.loads(line.split(" ", 1)[1])
            if any(source["gaps"] for source in health["sources"].values()):
                return float(health["uptime_s"]) - 10
    return float("inf")


def _span(event: dict[str, Any], model: Model) -> tuple[str, int, int]:
    """Label, onset and offset in samples; an event lasts whole hops."""
    d, onset = model.description, int(event["id"].rsplit("-", 1)[1])
    return event["label"], onset, onset + round(event["duration_s"] * d.sample_rate / d.hop) * d.hop


def _microphone(folder: Path) -> Microphone:
    plugin = folder / "libasound_module_pcm_rtfile.so"
    source = Path(__file__).parents[1] / "tests" / "pcm_rtfile.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", plugin, source, "-lasound"], check=True)
    return Microphone(folder, plugin)


def _pipe_header(run: Running, rate: int) -> None:
    header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0" + rate.to_bytes(4, "little") + (2 * rate).to_bytes(4, "little")
    run.process.stdin.write(header + b"\x02\0\x10\0data\xff\xff\xff\xff")
    run.process.stdin.flush()


if __name__ == "__main__":
    main()
