"""How fast this computer is with a model: the network, a live stream's work, a scan, a start. Told with its spread."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from detector.audio.file import FileSource
from detector.audio.level import Meter
from detector.audio.resample import Resampler
from detector.audio.source import Block, Floats
from detector.health import own_version
from detector.model import Model
from detector.pipeline import Pipeline
from detector.scan import scan

STREET = Path(__file__).parent / "demo" / "street.ogg"
MEASURE_S = 0.7
"""How long each figure is measured: some hundred steps of a small network."""
LEAST = 5
"""... but at least so often."""
HOPS = (1, 4, 16, 64)
STREAMS = (1, 4, 16, 64, 256, 1024, 4096)
CROWD = 500
MICROPHONE_RATE, MICROPHONE_BLOCK_S = 48_000, 0.05
START = "from detector.cli import main; main()"
SETTLE_S, LISTEN_S = 2.0, 10.0
"""A daemon has opened all it opens after so long; its share of a core is taken over so long."""


@dataclass(frozen=True)
class Figure:
    """what: in words; value: the median, in `unit`; low, high: 10th and 90th percentile of what was measured; note: in words."""

    what: str
    value: float
    unit: str
    low: float
    high: float
    note: str = ""


def machine(model: Model) -> dict[str, str]:
    """Where the figures are from."""
    d = model.description
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "provider": model.provider,
        "model": f"{d.name} {d.version}, sha256 {d.sha256[:12]}",
        "versions": f"urbandetect {own_version()}, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}",
    }


def figures(model: Model, model_file: str) -> Iterator[Figure]:
    """One after the other, as they are measured; half a minute or more in all. model_file: the daemon's, empty: the shipped one."""
    yield from _limits()
    yield from _network(model)
    yield from _live(model)
    yield _crowd(model)
    yield _scan(model)
    yield from _daemon(model, model_file)


def _limits() -> Iterator[Figure]:
    """What one core can do at all: no network is faster than its sums and products, no copy than the memory."""
    square = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    times = times_s(lambda: square @ square)
    yield _figure("product of matrices 1024 x 1024, float32, by numpy", [2 * 1024**3 / t / 1e9 for t in times], "GFLOP/s")
    much, there = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)
    times = times_s(lambda: np.copyto(there, much))
    yield _figure("copy of 64 MB", [2 * much.nbytes / t / 1e9 for t in times], "GB/s")


def _network(model: Model) -> Iterator[Figure]:
    hop_s = model.description.hop / model.description.sample_rate
    for hops in HOPS:
        times = _steps(model, 1, hops)
        note = f"{1e3 * statistics.median(times) / (hops * hop_s):.2f} ms per second of sound"
        yield _figure(f"network, one stream, {hops} hop{'s' * (hops > 1)} a step", [1e3 * t for t in times], "ms", note)
    for streams in STREAMS:
        times = _steps(model, streams, 1)
        note = f"at most {int(hop_s * streams / statistics.median(times)):,} streams in real time"
        yield _figure(f"network, {streams:,} stream{'s' * (streams > 1)}, a hop each", [1e3 * t for t in times], "ms", note)


def _live(model: Model) -> Iterator[Figure]:
    """What the daemon's loop does with a microphone's sound: level, resampling, ring, network, tracker, block by block."""
    rate, size = MICROPHONE_RATE, round(MICROPHONE_BLOCK_S * MICROPHONE_RATE)
    sound = _street(rate)
    blocks = [Block(sound[at : at + size], at, 0.0) for at in range(0, len(sound) - size + 1, size)]
    seconds = len(blocks) * MICROPHONE_BLOCK_S

    def hear() -> None:
        meter, pipeline = Meter(rate, 10.0), Pipeline(model, 1)
        pipeline.begin(0, rate)
        for block in blocks:
            weighted, _ = meter.hear(block)
            pipeline.feed(0, block, weighted)
            pipeline.advance()
        pipeline.finish(0)

    def measure() -> None:
        meter = Meter(rate, 10.0)
        for block in blocks:
            meter.hear(block)

    note = f"blocks of {1e3 * MICROPHONE_BLOCK_S:g} ms at {rate} Hz, one after the other: caches are warm"
    yield _figure("live: all of the loop's work, per second of sound", [1e3 * t / seconds for t in times_s(hear)], "ms", note)
    yield _figure("of it sound levels", [1e3 * t / seconds for t in times_s(measure)], "ms")


def _crowd(model: Model) -> Figure:
    """Many live streams in one process: ring, network and tracker of all, when each has a hop more."""
    d = model.description
    pipeline, sound = Pipeline(model, CROWD), _street(d.sample_rate)
    for slot in range(CROWD):
        pipeline.begin(slot, d.sample_rate)
    hop = 0

    def hear() -> None:
        nonlocal hop
        for slot in range(CROWD):
            at = (hop * d.hop + slot * d.sample_rate // 10) % (len(sound) - d.hop)
            pipeline.feed(slot, Block(sound[at : at + d.hop], hop * d.hop, 0.0))
        pipeline.advance()
        hop += 1

    times = times_s(hear)
    note = f"must be below the hop of {1e3 * d.hop / d.sample_rate:.1f} ms; {np.percentile(times, 99) * 1e3:.0f} ms for 99 %"
    return _figure(f"{CROWD} live streams, a hop each", [1e3 * t for t in times], "ms", note)


def _scan(model: Model) -> Figure:
    source = FileSource(STREET)
    seconds = 0.0
    while (block := source.read()) is not None:
        seconds += len(block.samples) / source.rate
    times = times_s(lambda: list(scan(STREET, model)))
    note = f"{seconds / statistics.median(times):,.0f} times real time, Ogg Vorbis at {source.rate} Hz"
    return _figure("scan, decoding included, per second of sound", [1e3 * t / seconds for t in times], "ms", note)


def _daemon(model: Model, model_file: str) -> Iterator[Figure]:
    """Of `urbandetect run`, a process of its own, that hears the street in real time."""
    firsts = []
    for last in (False, False, True):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as settings:
            for label in model.description.labels:  # every score opens an event, so that the first line is the first score
                settings.write(f'[thresholds."{label}"]\non = 1e-9\nmin_on_s = 0.0\n')
            settings.flush()
            options = ["--config", settings.name, "--input", str(STREET), "--provider", model.provider]
            command = [sys.executable, "-c", START, "run", *options, *(["--model", model_file] if model_file else [])]
            began_s = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout
                try:
                    process.stdout.readline()
                    firsts.append(time.perf_counter() - began_s)
                    if last:
                        time.sleep(SETTLE_S)
                        before_s = cpu_s(process.pid)
                        time.sleep(LISTEN_S)
                        share, resident = 100 * (cpu_s(process.pid) - before_s) / LISTEN_S, resident_mb(process.pid)
                finally:
                    process.kill()
    yield _figure("start of the process to the first score", firsts, "s")
    yield _figure("a daemon that hears in real time, of one core", [share], "%", "wakes up once a hop to cold caches")
    yield _figure("its resident memory", [resident], "MB")


def _steps(model: Model, streams: int, hops: int) -> list[float]:
    """Seconds of each step."""
    d = model.description
    audio = np.random.default_rng(0).normal(0, 0.1, (streams, d.context + hops * d.hop)).astype(np.float32)
    state = model.fresh_state(streams)

    def step() -> None:
        nonlocal state
        _, state = model.step(audio, state)

    return times_s(step)


def times_s(call: Callable[[], object]) -> list[float]:
    """Seconds of each of many calls, after one that does not count."""
    call()
    times: list[float] = []
    while len(times) < LEAST or sum(times) < MEASURE_S:
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return times


def _figure(what: str, values: list[float], unit: str, note: str = "") -> Figure:
    low, median, high = np.percentile(values, (10, 50, 90)).tolist()
    return Figure(what, median, unit, low, high, note)


def _street(rate: int) -> Floats:
    source = FileSource(STREET)
    pieces = []
    while (block := source.read()) is not None:
        pieces.append(block.samples)
    return Resampler(source.rate, rate).push(np.concatenate(pieces), last=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
