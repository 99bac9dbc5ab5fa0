"""The daemon: sources -> pipeline -> events -> publisher. The only file that knows all the rooms."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from detector.audio.clock import SampleClock
from detector.audio.file import open_input
from detector.audio.level import dbfs
from detector.audio.source import Block, Source, SourceLost
from detector.config import Settings, SourceSettings, node_name
from detector.errors import Hang, UrbandetectError
from detector.event import Origin, describe, new_session, timestamp
from detector.health import health
from detector.model import Model, Threshold
from detector.pipeline import Pipeline
from detector.tracker import Change

log = logging.getLogger(__name__)

HEALTH_S = 60.0
GAP_S = 1.0
"""Gaps are told at most so often: a sound card that overflows does so with every block."""
LONGEST_WAIT_S = 0.25
"""How long a request to stop may go unnoticed: a signal handler may not touch what the loop waits on."""
REOPEN_S = (1.0, 30.0)
"""A lost microphone is looked for again after so long, doubling to the longer, with jitter so that many do not knock at once."""


class Publisher(Protocol):
    """Where events leave. failure: why the daemon must end; dropped: events that could not be told."""

    failure: UrbandetectError | None
    dropped: int

    def start(self) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def label(self, source: str, label: str, on: bool) -> None: ...
    def source(self, source: str, hearing: bool) -> None: ...
    def level(self, source: str, level: dict[str, Any]) -> None: ...
    def health(self, health: dict[str, Any]) -> None: ...
    def stop(self, patient: bool) -> None: ...


@dataclass
class _Ear:
    """One source while the daemon runs: open or being looked for, with its session's clock and its level so far."""

    settings: SourceSettings
    source: Source | None
    clock: SampleClock
    session: str = ""
    hearing: bool = False
    seq: int = 0
    began: dict[str, datetime] = field(default_factory=dict)
    retry_s: float = REOPEN_S[0]
    retry_at_s: float = 0.0
    gap_said_s: float = float("-inf")
    square_sum: float = 0.0
    samples: int = 0


class Daemon:
    """Runs until its sources end or `stop` is called."""

    def __init__(
        self, settings: Settings, model: Model, thresholds: dict[str, Threshold], publisher: Publisher, speed: float
    ) -> None:
        """Opens every source; raises what opening raises. speed: of files, times real time, 0 as fast as they go."""
        self._settings, self._model, self._publisher, self._speed = settings, model, publisher, speed
        self._node = node_name(settings)
        self._wake = threading.Event()
        self._stopping = False
        self._pipeline = Pipeline(model, len(settings.source), thresholds, settings.events.update_s)
        self._ears = [_Ear(source, None, SampleClock(1)) for source in settings.source]
        for slot in range(len(self._ears)):
            self._open(slot)
        self._started_s = time.monotonic()
        self._health_at_s = self._started_s

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Hear until every source has ended or `stop`; then close events and say goodbye.

        Devices are left to the end of the process: closing a card that hangs would hold it up.
        """
        self._publisher.start()
        for ear in self._ears:
            self._publisher.source(ear.settings.name, False)
            self._all_off(ear)
        self._tell_health()
        try:
            while not self._stopping and any(ear.source is None or not ear.source.ended for ear in self._ears):
                heard = [self._hear(slot) for slot in range(len(self._ears))]
                for slot, change in self._pipeline.advance():
                    self._publish(slot, change)
                for slot, ear in enumerate(self._ears):
                    if ear.source is not None and ear.source.ended and ear.session:
                        self._end_session(slot, self._pipeline.finish(slot))
                if self._publisher.failure:
                    raise self._publisher.failure
                if time.monotonic() - self._health_at_s >= HEALTH_S:
                    self._tell_health()
                if not any(heard):
                    self._wake.wait(self._wait_s())
                    self._wake.clear()
        finally:
            for slot, ear in enumerate(self._ears):
                if ear.session:
                    self._end_session(slot, self._pipeline.lose(slot))
            self._publisher.stop(patient=not self._stopping)
        if self._publisher.failure:
            raise self._publisher.failure

    def _hear(self, slot: int) -> bool:
        """Take what this source has; True when it had something."""
        ear = self._ears[slot]
        if ear.source is None:
            if time.monotonic() >= ear.retry_at_s:
                self._reopen(slot)
            return False
        try:
            block = None if ear.source.ended else ear.source.read()
        except SourceLost as lost:
            heard = ear.hearing
            log.log(logging.WARNING if heard or ear.retry_s == REOPEN_S[0] else logging.DEBUG, "%s; looking for it", lost)
            self._end_session(slot, self._pipeline.lose(slot))
            if not heard:  # it opens and stays silent
                self._try_later(ear)
            ear.source.close()
            ear.source = None
            return False
        if block is None:
            return False
        if not ear.hearing:
            ear.hearing, ear.retry_s = True, REOPEN_S[0]
            log.info("%s: hearing", ear.settings.name)
            self._publisher.source(ear.settings.name, True)
            self._tell_health()
        for change in self._feed(slot, block):
            self._publish(slot, change)
        return True

    def _feed(self, slot: int, block: Block) -> list[Change]:
        ear = self._ears[slot]
        ear.clock.observe(block.first + len(block.samples), block.arrived_s)
        ear.square_sum += float(np.dot(block.samples, block.samples))
        ear.samples += len(block.samples)
        if ear.samples >= self._settings.events.level_s * ear.clock.rate:
            level = {
                "time": timestamp(ear.clock.utc((block.first + len(block.samples)) / ear.clock.rate)),
                "interval_s": round(ear.samples / ear.clock.rate, 3),
            }
            self._publisher.level(ear.settings.name, level | {"dbfs": round(dbfs(ear.square_sum / ear.samples), 1), "laeq": None})
            ear.square_sum, ear.samples = 0.0, 0
        gaps = self._pipeline.gaps(slot)
        changes = self._pipeline.feed(slot, block)
        if self._pipeline.gaps(slot) != gaps and block.arrived_s - ear.gap_said_s >= GAP_S:
            ear.gap_said_s = block.arrived_s
            log.warning("%s: samples were lost, %d so far; open events are closed", ear.settings.name, self._pipeline.gaps(slot)[1])
            self._tell_health()
        return changes

    def _publish(self, slot: int, change: Change) -> None:
        ear = self._ears[slot]
        ear.seq += 1
        if change.phase == "start":
            ear.began[change.label] = ear.clock.utc(change.onset / self._model.description.sample_rate)
        origin = Origin(self._node, ear.settings.name, ear.session, self._model.description)
        self._publisher.event(describe(change, origin, ear.began[change.label], ear.seq))
        if change.phase != "update":
            self._publisher.label(ear.settings.name, change.label, change.phase == "start")

    def _open(self, slot: int) -> None:
        ear = self._ears[slot]
        if ear.settings.input:
            ear.source = open_input(ear.settings.input, self._speed)
        else:
            from detector.audio.microphone import Microphone

            ear.source = Microphone(ear.settings.device, self._wake)
        ear.clock, ear.session, ear.square_sum, ear.samples = SampleClock(ear.source.rate), new_session(), 0.0, 0
        self._pipeline.begin(slot, ear.source.rate)

    def _reopen(self, slot: int) -> None:
        from detector.audio.microphone import rescan

        ear = self._ears[slot]
        try:
            if all(other.source is None or other.settings.input for other in self._ears):
                rescan()
            self._open(slot)
        except Hang:
            raise
        except UrbandetectError as error:
            self._try_later(ear)
            log.debug("%s", error)

    @staticmethod
    def _try_later(ear: _Ear) -> None:
        ear.retry_at_s = time.monotonic() + ear.retry_s * random.uniform(0.5, 1.0)
        ear.retry_s = min(2 * ear.retry_s, REOPEN_S[1])

    def _end_session(self, slot: int, changes: Sequence[Change]) -> None:
        """Publish what closes the session, and that nothing is heard now."""
        for change in changes:
            self._publish(slot, change)
        ear = self._ears[slot]
        ear.session, ear.hearing = "", False
        ear.retry_at_s = time.monotonic()
        self._publisher.source(ear.settings.name, False)
        self._all_off(ear)
        self._tell_health()

    def _all_off(self, ear: _Ear) -> None:
        for label in self._model.description.labels:
            self._publisher.label(ear.settings.name, label, False)

    def _tell_health(self) -> None:
        self._health_at_s = time.monotonic()
        sources = {}
        for slot, ear in enumerate(self._ears):
            gaps, lost = self._pipeline.gaps(slot)
            sources[ear.settings.name] = {"hearing": ear.hearing, "gaps": gaps, "lost_samples": lost}
        self._publisher.health(health(self._model, self._health_at_s - self._started_s, self._publisher.dropped, sources))

    def _wait_s(self) -> float:
        """Until the next source may have something; microphones wake us themselves."""
        now = time.monotonic()
        waits = [
            ear.source.wait_s() if ear.source else max(0.0, ear.retry_at_s - now)
            for ear in self._ears
            if not (ear.source and ear.source.ended)
        ]
        return min([LONGEST_WAIT_S, *waits])


def run(daemon: Daemon) -> None:
    """Run until the end, SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.run()
