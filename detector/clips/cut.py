"""Which samples a clip holds: cut exactly, however the blocks came. Pure: no clock, no I/O."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from detector.audio.source import Block, Floats
from detector.tracker import Change

LATE_ROWS, LATE_S = 4, 0.5
"""At a gap and at the end of a session the last rows are scored before what they mean is told: so much sound is kept for that, of
which half a second is for what a resampler holds back."""

Short = Literal["", "longest", "gap", "end"]


@dataclass(frozen=True)
class Form:
    """What a clip is, in seconds: so long before the onset to so long after the offset, never longer than max_s in all."""

    before_s: float
    after_s: float
    max_s: float


@dataclass(frozen=True)
class Cut:
    """A clip's samples: [first, first + their number) of the session, at `rate`.

    event: as it was told last; onset, offset: of the session, offset None when the event went on; short: why it ends before after_s
    were over: "longest", a "gap", or the sound's "end".
    """

    name: str
    event: Mapping[str, Any]
    rate: int
    first: int
    onset: int
    offset: int | None
    pieces: tuple[Floats, ...]
    short: Short

    @property
    def samples(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(eq=False)
class _Run:
    """Sound without a hole. origin: its first sample at the model's rate; over: what came after it."""

    origin: int
    end: int
    blocks: deque[Block] = field(default_factory=deque)
    over: Short = ""


@dataclass
class _Clip:
    """One under way. stop: where it is to end, once its event has."""

    name: str
    event: Mapping[str, Any]
    run: _Run
    first: int
    onset: int
    longest: int
    offset: int | None = None
    stop: int = sys.maxsize


class Cutter:
    """One session of a source. Everything it is told gives the clips that became complete by it.

    Blocks are kept as they came, not copied: of what clips are under way and what the model has still to tell of.
    """

    def __init__(self, rate: int, model_rate: int, hop: int, form: Form) -> None:
        """rate: of the blocks; model_rate: of changes; hop: samples a row, at the model's rate."""
        self._rate, self._model_rate = rate, model_rate
        self._late = LATE_ROWS * hop + round(LATE_S * model_rate)
        self._before, self._after, self._max = (round(s * rate) for s in (form.before_s, form.after_s, form.max_s))
        self._runs: list[_Run] = []
        self._clips: dict[str, _Clip] = {}
        self._lasts = -sys.maxsize
        """An event that has not been told to end lasts until here at least."""

    def block(self, block: Block) -> list[Cut]:
        """The next block. A jump in its index is a gap, over which no clip reaches."""
        if not self._runs or block.first != self._runs[-1].end:
            if self._runs:
                self._runs[-1].over = "gap"
                used = [clip.run for clip in self._clips.values()]
                self._runs = [run for run in self._runs[:-1] if run in used] + self._runs[-1:]  # of those before, all is told
            self._runs.append(_Run(round(block.first * self._model_rate / self._rate), block.first))
        run = self._runs[-1]
        run.blocks.append(block)
        run.end += len(block.samples)
        return self._ripe()

    def event(self, name: str, event: Mapping[str, Any], change: Change) -> list[Cut]:
        """What became of an event, whose clip is to have this name."""
        if change.phase == "start" and self._runs:
            run = next((run for run in reversed(self._runs) if run.origin <= change.onset), self._runs[0])
            held = run.blocks[0].first if run.blocks else run.end
            onset = min(max(self._at(change.onset), held), run.end)
            first = max(onset - self._before, held)
            self._clips[name] = _Clip(name, event, run, first, onset, first + self._max)
        elif clip := self._clips.get(name):
            clip.event = event
            if change.phase == "end":
                clip.offset = min(self._at(change.offset), clip.run.end)
                clip.stop = clip.offset + self._after
        return self._ripe()

    def stepped(self, first: int, min_on: int, min_off: int) -> list[Cut]:
        """All before sample `first` is scored, and nearly all of that told; min_on, min_off: the thresholds' longest. All at the
        model's rate."""
        told = first - self._late
        self._lasts = self._at(told - min_off)
        cuts, keep = self._ripe(), self._at(told - min_on) - self._before
        for run in self._runs:
            needed = min([keep, *(clip.first for clip in self._clips.values() if clip.run is run)])
            while run.blocks and run.blocks[0].first + len(run.blocks[0].samples) <= needed:
                run.blocks.popleft()
        self._runs = [run for run in self._runs if run.blocks or not run.over]
        return cuts

    def end(self) -> list[Cut]:
        """The session is over, and its events."""
        if self._runs:
            self._runs[-1].over = "end"
        return self._ripe()

    @property
    def held(self) -> int:
        """Samples in memory."""
        return sum(len(block.samples) for run in self._runs for block in run.blocks)

    def _at(self, sample: int) -> int:
        """A sample of the model's as one of the source's."""
        return round(sample * self._rate / self._model_rate)

    def _ripe(self) -> list[Cut]:
        """Clips all of whose samples are here."""
        cuts: list[Cut] = []
        for clip in list(self._clips.values()):
            run, ended = clip.run, clip.offset is not None
            stop = min(clip.stop, clip.longest)
            short: Short = "" if stop == clip.stop else "longest"
            if run.end < stop and run.over and ended:
                stop, short = run.end, run.over
            if run.end >= stop and (ended or self._lasts + self._after >= stop):
                cuts.append(self._cut(clip, stop, short))
                del self._clips[clip.name]
        return cuts

    def _cut(self, clip: _Clip, stop: int, short: Short) -> Cut:
        pieces = []
        for block in clip.run.blocks:
            begin, end = max(clip.first, block.first), min(stop, block.first + len(block.samples))
            if begin < end:
                pieces.append(block.samples[begin - block.first : end - block.first])
        return Cut(clip.name, clip.event, self._rate, clip.first, clip.onset, clip.offset, tuple(pieces), short)
