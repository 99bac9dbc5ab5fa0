"""Blocks in, changes out: resample, ring, engine and tracker for N streams. Live and offline are this same code."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.audio.resample import Resampler
from detector.audio.ring import Ring
from detector.audio.source import Block, Floats
from detector.audio.weighting import Doubles
from detector.engine import Engine
from detector.model import Model, Threshold
from detector.tracker import Change, Tracker

MOST_HOPS = 64
"""Rows in one step when there is a backlog: past this a longer window is no cheaper per row."""
USUAL_BLOCK_S = 0.2
"""Rings are made for blocks like these, and grow with longer ones: of a thousand microphones each has one."""
STEP_S = 0.5
"""A step takes no more rows than it can do in so long, as far as the last one tells: a slow computer still heeds its user."""


@dataclass(frozen=True)
class Heard:
    """What a step took of one stream and made of it: views that last until the next step.

    first: sample of the session where the new sound begins; samples: [k * hop], new; scores: [k, labels]; mean_squares: [k].
    """

    slot: int
    first: int
    samples: Floats
    scores: Floats
    mean_squares: NDArray[np.float64]


class HopMeans:
    """Mean squares of the model's hops, of samples at the source's own rate: to the sample, for the two count time alike."""

    def __init__(self, first: int, origin: int, hop: int, rate: int, to_rate: int) -> None:
        """first: index of the next sample at `rate`; origin: begin of the next hop at `to_rate`."""
        self._at, self._origin, self._hop, self._ratio = first, origin, hop, rate / to_rate
        self._hops, self._sum = 0, 0.0
        self._done: deque[float] = deque()

    def push(self, samples: Doubles) -> None:
        """Count samples in."""
        while self._at + len(samples) >= (end := round((self._origin + (self._hops + 1) * self._hop) * self._ratio)):
            mine, samples = samples[: end - self._at], samples[end - self._at :]
            self._done.append((self._sum + float(np.dot(mine, mine))) / (self._hop * self._ratio))
            self._at, self._hops, self._sum = end, self._hops + 1, 0.0
        self._sum += float(np.dot(samples, samples))
        self._at += len(samples)

    def take(self, count: int) -> Doubles:
        """Of the next `count` hops; one that is not full goes on with silence, as the last hop of a stream does."""
        means = [self._done.popleft() for _ in range(min(count, len(self._done)))]
        if len(means) < count:
            means.append(self._sum / (self._hop * self._ratio))
            self._sum = 0.0
        return np.array(means + [0.0] * (count - len(means)))


@dataclass
class _Stream:
    """One source on its way to score rows.

    The ring's index 0 is `context` samples before `origin`, the sample of the session at which the sound (re)started; `done` rows
    have been scored since then. All in samples at the model's rate, but `expected`, the source's next index at its own rate.
    """

    ring: Ring
    tracker: Tracker
    rate: int
    resampler: Resampler
    weighted: HopMeans
    origin: int = 0
    done: int = 0
    expected: int = 0
    lost: int = 0
    gaps: int = 0


class Pipeline:
    """N streams of one model. `begin` a slot's session, then `feed` and `step` in turn; `finish` or `lose` it at its end."""

    def __init__(self, model: Model, slots: int, thresholds: Mapping[str, Threshold] | None = None, update_s: float = 0.0) -> None:
        d = model.description
        self._rate, self._hop, self._context = d.sample_rate, d.hop, d.context
        self._engine = Engine(model, slots)
        self._row_s = 1e-9
        self.tap: Callable[[float, list[Heard]], None] | None = None
        """Told of each step: how long the model took, and what it heard."""
        capacity = d.context + 2 * d.hop + round(USUAL_BLOCK_S * d.sample_rate)
        levels = d.thresholds if thresholds is None else thresholds
        self._streams = [
            _Stream(
                Ring(capacity),
                Tracker(d.labels, levels, d.hop, d.sample_rate, update_s),
                d.sample_rate,
                Resampler(1, 1),
                HopMeans(0, 0, d.hop, 1, 1),
            )
            for _ in range(slots)
        ]

    def use(self, thresholds: Mapping[str, Threshold], slot: int | None = None) -> None:
        """Other thresholds from the next row on, of one stream or of all."""
        for stream in self._streams if slot is None else [self._streams[slot]]:
            stream.tracker.use(thresholds)

    def begin(self, slot: int, rate: int, first: int = 0) -> None:
        """A session begins: its next block has index `first`, at `rate` samples a second."""
        stream = self._streams[slot]
        stream.rate, stream.expected = rate, first
        stream.tracker.begin()
        self._restart(slot, first)

    def feed(self, slot: int, block: Block, weighted: Doubles | None = None) -> list[Change]:
        """Take a block in. A jump in its index is a gap: events end at the last good sample, the state is fresh after it.

        Only when `ready` is false may the next block be fed. weighted: its samples A-weighted, for the changes' mean_square_a.
        """
        stream = self._streams[slot]
        changes: list[Change] = []
        if block.first != stream.expected:
            stream.lost += max(0, block.first - stream.expected)
            stream.gaps += 1
            changes = self.lose(slot)
            self._restart(slot, block.first)
        stream.expected = block.first + len(block.samples)
        self._write(stream, stream.resampler.push(block.samples))
        if weighted is not None:
            stream.weighted.push(weighted)
        return changes

    def ready(self, slots: Iterable[int] | None = None) -> bool:
        """Whether any of these streams, or any at all, has a hop to step."""
        among = range(len(self._streams)) if slots is None else slots
        return any(self._hops(self._streams[slot]) > 0 for slot in among)

    def missing(self, slot: int) -> int:
        """How many more samples of this source make its next hop, at least 1."""
        stream = self._streams[slot]
        return max(1, stream.resampler.needs(self._context + (stream.done + 1) * self._hop - stream.ring.end))

    def step(self, slots: Iterable[int] | None = None) -> list[tuple[int, Change]]:
        """Step every one of these streams, or of all, that has a hop: one batch, once."""
        among = range(len(self._streams)) if slots is None else slots
        ready = [(slot, hops) for slot in among if (hops := self._hops(self._streams[slot])) > 0]
        if not ready:
            return []
        count = min(MOST_HOPS, max(1, int(STEP_S / self._row_s)), *(hops for _, hops in ready))
        chosen = [slot for slot, _ in ready]
        windows = [self._window(self._streams[slot], count) for slot in chosen]
        began_s = time.monotonic()
        rows = self._engine.step(chosen, windows)
        took_s = time.monotonic() - began_s
        self._row_s = took_s / count + 1e-9
        changes: list[tuple[int, Change]] = []
        heard: list[Heard] = []
        for slot, window, scores in zip(chosen, windows, rows, strict=True):
            stream = self._streams[slot]
            new = window[self._context :].reshape(count, self._hop)
            mean_squares = np.einsum("ij,ij->i", new, new, dtype=np.float64) / self._hop
            first = stream.origin + stream.done * self._hop
            stream.done += count
            heard.append(Heard(slot, first, window[self._context :], scores, mean_squares))
            weighted = stream.weighted.take(count)
            changes += [(slot, change) for change in stream.tracker.update(first, scores, mean_squares, weighted)]
        if self.tap:
            self.tap(took_s, heard)
        return changes

    def advance(self, slots: Iterable[int] | None = None) -> list[tuple[int, Change]]:
        """Step until none of these streams, or of all, has a hop."""
        among = None if slots is None else list(slots)
        changes: list[tuple[int, Change]] = []
        while self.ready(among):
            changes += self.step(among)
        return changes

    def finish(self, slot: int) -> list[Change]:
        """The stream has ended: score what is left of its last hop, filled up with silence, and close its events."""
        stream, heard = self._streams[slot], self._drain(slot)
        self._write(stream, np.zeros(-(heard - stream.origin) % self._hop, np.float32))
        return [change for _, change in self.advance([slot])] + stream.tracker.close(heard)

    def lose(self, slot: int) -> list[Change]:
        """The source has gone: close its events at the last good sample. `begin` when it is back."""
        heard = self._drain(slot)
        return [change for _, change in self.advance([slot])] + self._streams[slot].tracker.close(heard)

    def _drain(self, slot: int) -> int:
        """Let out what the resampler still holds: up to which sample there is sound."""
        stream = self._streams[slot]
        self._write(stream, stream.resampler.push(np.zeros(0, np.float32), last=True))
        return stream.origin + stream.ring.end - self._context

    @property
    def steps(self) -> int:
        """How many calls of the model there were."""
        return self._engine.steps

    def gaps(self, slot: int) -> tuple[int, int]:
        """How many gaps this source has had, and how many of its samples they swallowed."""
        return self._streams[slot].gaps, self._streams[slot].lost

    def _restart(self, slot: int, first: int) -> None:
        stream = self._streams[slot]
        origin = round(first * self._rate / stream.rate)
        stream.resampler = Resampler(stream.rate, self._rate)
        stream.ring = Ring(stream.ring.capacity)
        stream.ring.write(np.zeros(self._context, np.float32))
        stream.origin, stream.done = origin, 0
        stream.weighted = HopMeans(first, origin, self._hop, stream.rate, self._rate)
        self._engine.reset(slot)

    def _write(self, stream: _Stream, samples: Floats) -> None:
        """Nothing that is not yet stepped is overwritten."""
        stream.ring.grow(stream.ring.end + len(samples) - stream.done * self._hop)
        stream.ring.write(samples)

    def _hops(self, stream: _Stream) -> int:
        return (stream.ring.end - self._context) // self._hop - stream.done

    def _window(self, stream: _Stream, hops: int) -> Floats:
        start = stream.done * self._hop
        return stream.ring.view(start, start + self._context + hops * self._hop)
