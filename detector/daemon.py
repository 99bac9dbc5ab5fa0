"""The daemon: sources -> pipeline -> events -> publisher. The only file that knows all the rooms."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from detector.audio.cards import cards, may_be
from detector.audio.clock import slept_s
from detector.audio.source import REASONS, Block, SourceLost
from detector.config import MqttSettings, Settings, node_name
from detector.ear import Ear
from detector.errors import Hang, TryAgainError, UrbandetectError
from detector.event import Origin, describe, timestamp
from detector.health import end_when_it_hangs, health, notify
from detector.model import Model, Threshold
from detector.pipeline import Heard, Pipeline
from detector.profile import Profile, in_force
from detector.tracker import Change

if TYPE_CHECKING:
    from detector.observer import Observer

log = logging.getLogger(__name__)

HEALTH_S = 60.0
GAP_S = 1.0
"""Gaps are told at most so often: a sound card that overflows does so with every block."""
LONGEST_WAIT_S = 0.25
"""How long a request to stop may go unnoticed: a signal handler may not touch what the loop waits on."""
SUPERVISE_S = 1.0
"""How often the supervisor is told that all is going on."""
RESCAN_S = (60.0, 3600.0)
"""Between two times that microphones which are heard are closed for one that is not, doubling to the longer while that is in vain:
a card that comes and goes, or is in use by others, deafens nobody."""
SLEPT_S = 0.5
"""A computer that was suspended for so long has not heard what was there meanwhile."""


class Publisher(Protocol):
    """Where events leave. failure: why the daemon must end; wishes: thresholds that were asked for since, by source and label."""

    failure: UrbandetectError | None

    def start(self) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def label(self, source: str, label: str, on: bool) -> None: ...
    def source(self, source: str, hearing: bool) -> None: ...
    def level(self, source: str, level: dict[str, Any]) -> None: ...
    def health(self, health: dict[str, Any]) -> None: ...
    def threshold(self, source: str, label: str, on: float) -> None: ...
    def wishes(self) -> dict[tuple[str, str], float]: ...
    def use(self, settings: MqttSettings) -> None: ...
    def status(self) -> str: ...
    def facts(self) -> dict[str, Any]: ...
    def hangs(self) -> bool: ...
    def stop(self, patient: Callable[[], bool]) -> None: ...


class Daemon:
    """Runs until its sources end or `stop` is called."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        profiles: Sequence[Profile],
        publisher: Publisher,
        speed: float,
        reload: Callable[[], AbstractContextManager[tuple[Settings, Sequence[Profile]]]],
        observers: Sequence[Observer] = (),
    ) -> None:
        """Opens every source; a microphone that is not there is looked for, anything else wrong is raised.

        profiles: which thresholds count when; speed: of files, times real time, 0 as fast as they go; reload: reads the settings
        again, and says of errors while they are tried whose they are; observers: who looks on.
        """
        self._settings, self._model, self._publisher, self._speed, self._reload = settings, model, publisher, speed, reload
        self._node = node_name(settings)
        self._wake = threading.Event()
        self._stopping = self._reloading = False
        self._doing = "starting"
        self._beats = 0
        self._profiles, self._profile = profiles, in_force(profiles, datetime.now())
        self._pipeline = Pipeline(model, len(settings.source), self._profile.thresholds, settings.events.update_s)
        self._thresholds = [self._profile.thresholds for _ in settings.source]
        self._ears = [Ear(source, settings.events.level_s) for source in settings.source]
        self._cards, self._rescan_at_s, self._rescan_s = cards(), float("-inf"), RESCAN_S[0]
        """Those there were when PortAudio last looked; when others may be closed for that again, and how long after that."""
        self._observers = observers
        if observers:
            self._pipeline.tap = self._stepped
        for slot, ear in enumerate(self._ears):
            try:
                self._open(slot)
            except Hang:
                raise
            except TryAgainError as error:
                ear.say(f"{error}")
                ear.wait()
        self._slept_s = slept_s()
        self._started_s = self._supervised_s = self._health_at_s = time.monotonic()

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._stopping = True

    def reload(self) -> None:
        """Ask the loop to read the settings again; safe in a signal handler."""
        self._reloading = True

    def progress(self) -> object:
        """Changes as long as the daemon gets on."""
        return self._beats, self._pipeline.steps

    def doing(self) -> str:
        """What the loop is at."""
        return self._doing

    def run(self) -> None:
        """Hear until every source has ended or `stop`; then close events and say goodbye.

        Devices are left to the end of the process: closing a card that hangs would hold it up.
        """
        self._publisher.start()
        for ear in self._ears:
            self._publisher.source(ear.name, False)
            self._all_off(ear)
        self._use(self._profile.thresholds, range(len(self._ears)))
        if self._profile.name:
            log.info("profile %s is in force", self._profile.name)
        self._look()
        for observer in self._observers:
            observer.start()
        self._tell_health()
        notify("READY=1")
        try:
            while not self._stopping and not all(ear.ended for ear in self._ears):
                self._beats += 1
                if self._reloading:
                    self._take_new_settings()
                for observer in self._observers:
                    if thresholds := observer.wanted():
                        self._use(thresholds, range(len(self._ears)))
                self._notice_sleep()
                if not self._pipeline.ready():
                    for slot in range(len(self._ears)):
                        self._hear(slot)
                self._doing = "the model"
                for slot, change in self._pipeline.step():
                    self._publish(slot, change)
                for slot, ear in enumerate(self._ears):
                    if ear.ended and ear.session:
                        self._end_session(slot, self._pipeline.finish(slot))
                self._supervise()
                self._doing = "waiting for sound"
                if not self._pipeline.ready():
                    self._wake.wait(self._wait_s())
                    self._wake.clear()
        finally:
            notify("STOPPING=1")
            for slot, ear in enumerate(self._ears):
                if ear.session:
                    self._end_session(slot, self._pipeline.lose(slot))
            self._doing = "publishing the last events"
            self._publisher.stop(self._patient)
            failure = self._publisher.failure
            for observer in self._observers:
                if (missing := observer.stop()) and not failure and self._patient():
                    failure = missing
                elif missing:
                    log.error("%s", missing)
        if failure:
            raise failure

    def _patient(self) -> bool:
        """Whether this is the end of recordings, at which everything is to be delivered: not when somebody asks to stop."""
        self._beats += 1
        return not self._stopping and all(ear.ended for ear in self._ears)

    def _hear(self, slot: int) -> None:
        """Take what this source has."""
        ear = self._ears[slot]
        self._doing = f"source {ear.name}"
        if ear.source is None:
            if time.monotonic() >= ear.retry_at_s:
                self._reopen(slot)
            return
        try:
            block = None if ear.ended else ear.source.read()
        except SourceLost as lost:
            self._lose(slot, "lost", f"{lost}")
            return
        if block is None:
            if ear.stands_still():
                self._lose(slot, "lost", "nothing comes through the pipe")
            return
        if not ear.session:  # a pipe that stood still, a stream's first
            ear.begin()
            self._begin(slot, block.first)
        if ear.heard():
            self._publisher.source(ear.name, True)
            self._tell_health()
        for change in self._feed(slot, block):
            self._publish(slot, change)

    def _feed(self, slot: int, block: Block) -> list[Change]:
        ear = self._ears[slot]
        end = block.first + len(block.samples)
        ear.clock.observe(end, block.arrived_s)
        ear.stillness.hear(block.samples)
        weighted, levels = ear.meter.hear(block)
        for level in levels:
            at = timestamp(ear.clock.utc(level.end / ear.clock.rate))
            self._publisher.level(ear.name, {"time": at} | level.told(ear.settings.calibration_db))
        for observer in self._observers:
            observer.block(ear.name, block)
        silence_news = ear.check_silence()
        gaps, lost = self._pipeline.gaps(slot)
        changes = self._pipeline.feed(slot, block, weighted)
        gaps_now, lost_now = self._pipeline.gaps(slot)
        if gaps_now != gaps:
            ear.gaps[block.reason or "lost"] += 1
            if block.reason == "overload":
                d = self._model.description
                ear.dropped_windows += round((lost_now - lost) / ear.clock.rate * d.sample_rate / d.hop)
        gap_news = gaps_now != gaps and block.arrived_s - ear.gap_said_s >= GAP_S
        if gap_news:
            ear.gap_said_s = block.arrived_s
            why = f" ({REASONS[block.reason]})" if block.reason else ""
            log.warning("%s: samples were lost%s, %d so far; open events are closed", ear.name, why, lost_now)
        if silence_news or gap_news:
            self._tell_health()
        return changes

    def _publish(self, slot: int, change: Change) -> None:
        self._doing = "writing an event"
        ear = self._ears[slot]
        ear.seq += 1
        if change.phase == "start":
            ear.began[change.label] = ear.clock.utc(change.onset / self._model.description.sample_rate)
        origin = Origin(self._node, ear.name, ear.session, self._model.description, ear.settings.calibration_db)
        event = describe(change, origin, ear.began[change.label], ear.seq)
        for observer in self._observers:
            event |= observer.more(event)
        self._publisher.event(event)
        for observer in self._observers:
            observer.event(event, change)
        if change.phase != "update":
            self._publisher.label(ear.name, change.label, change.phase == "start")

    def _open(self, slot: int) -> None:
        ear = self._ears[slot]
        ear.open(self._speed, self._wake)
        if ear.session:  # a stream that connects begins one with its first block
            self._begin(slot)

    def _begin(self, slot: int, first: int = 0) -> None:
        """The session of an ear that has just begun one; first: index of its next block."""
        ear = self._ears[slot]
        self._pipeline.begin(slot, ear.clock.rate, first)
        for observer in self._observers:
            observer.begin(ear.name, ear.session, ear.clock.rate)

    def _reopen(self, slot: int) -> None:
        wanted = self._ears[slot].settings
        others = [other for other, ear in enumerate(self._ears) if ear.source and not ear.settings.input]
        if self._try(slot, look=not (wanted.input or others)) or wanted.input or not others:
            return
        known = self._cards
        if time.monotonic() >= self._rescan_at_s and may_be(wanted.device, cards() - known):
            for other in others:
                self._lose(other, "rescan", f"closed for a moment to find {wanted.name}, whose card may have come")
            if [self._try(each, look=each == others[0]) for each in (*others, slot)][-1]:
                self._rescan_s = RESCAN_S[0]
            else:  # a card that has just come may not be ready
                self._cards, self._rescan_s = known, min(2 * self._rescan_s, RESCAN_S[1])
            self._rescan_at_s = time.monotonic() + self._rescan_s

    def _try(self, slot: int, look: bool) -> bool:
        """Open a source, or say why not and look for it again later. look: let PortAudio look for microphones before, which ends
        all that are open."""
        from detector.audio.devices import rescan

        try:
            if look:
                self._cards = cards()
                rescan()
            self._open(slot)
        except Hang:
            raise
        except UrbandetectError as error:
            self._ears[slot].say(f"{error}")
            self._ears[slot].wait()
            return False
        return True

    def _lose(self, slot: int, reason: str, text: str) -> None:
        """The microphone has gone, or was not heard for a while: end the session, and look for it."""
        ear = self._ears[slot]
        source = ear.source if ear.returns else None  # a pipe cannot be opened again: it may go on
        if source:
            ear.source = None
        if ear.hearing:
            ear.gaps[reason] += 1
        if ear.session:
            self._end_session(slot, self._pipeline.lose(slot))
        else:
            ear.wait()
        ear.say(text)
        self._tell_health()
        if source:
            self._doing = f"closing {ear.name}"
            source.close()

    def _notice_sleep(self) -> None:
        before_s, self._slept_s = self._slept_s, slept_s()
        if self._slept_s - before_s < SLEPT_S:
            return
        for slot, ear in enumerate(self._ears):
            if ear.source and ear.returns:
                self._lose(slot, "asleep", f"this computer slept for {self._slept_s - before_s:.1f} s")

    def _end_session(self, slot: int, changes: Sequence[Change]) -> None:
        """Publish what closes the session, and that nothing is heard now."""
        for change in changes:
            self._publish(slot, change)
        ear = self._ears[slot]
        ear.lose()
        for observer in self._observers:
            observer.end(ear.name)
        self._publisher.source(ear.name, False)
        self._all_off(ear)
        self._tell_health()

    def _all_off(self, ear: Ear) -> None:
        for label in self._model.description.labels:
            self._publisher.label(ear.name, label, False)

    def _health(self) -> dict[str, Any]:
        sources = {ear.name: ear.facts(self._pipeline.gaps(slot)[1]) for slot, ear in enumerate(self._ears)}
        facts = dict(self._publisher.facts())
        for observer in self._observers:
            facts |= observer.facts()
        return health(self._model, time.monotonic() - self._started_s, sources, facts)

    def _tell_health(self) -> None:
        self._health_at_s = time.monotonic()
        self._publisher.health(self._health())

    def _stepped(self, took_s: float, heard: list[Heard]) -> None:
        """Show a step to who looks."""
        from detector.observer import Sound

        d, sounds = self._model.description, []
        for part in heard:
            ear = self._ears[part.slot]
            ends_s = ear.clock.utc((part.first + d.hop) / d.sample_rate).timestamp()
            sounds.append(Sound(ear.name, ear.session, part.first, ends_s, part.samples, part.scores, part.mean_squares))
        for observer in self._observers:
            observer.stepped(took_s, sounds)

    def _look(self) -> None:
        """Show how each stage is."""
        if not self._observers:
            return
        d = self._model.description
        stages = {ear.name: ear.status().removeprefix(f"{ear.name} ") for ear in self._ears}
        stages |= {"model": f"{d.name} {d.version} on {self._model.provider}"}
        stages |= {"publishing": self._publisher.status() or "JSON lines on standard output"}
        facts = self._health()
        for observer in self._observers:
            observer.look(facts, stages)

    def _use(self, thresholds: Mapping[str, Threshold], slots: Iterable[int]) -> None:
        """From now on, for these sources; who shows thresholds is told."""
        for slot in slots:
            self._thresholds[slot] = thresholds
            self._pipeline.use(thresholds, slot)
            for label, threshold in thresholds.items():
                self._publisher.threshold(self._ears[slot].name, label, min(1.0, threshold.on))
            for observer in self._observers:
                observer.use(self._ears[slot].name, thresholds)

    def _supervise(self) -> None:
        """Say that all stages get on, or end where one does not."""
        if self._publisher.failure:
            raise self._publisher.failure
        now_s = time.monotonic()
        if now_s - self._supervised_s < SUPERVISE_S:
            return
        self._supervised_s = now_s
        self._take_wishes()
        if self._publisher.hangs():
            raise Hang("publishing", "hangs", "a supervisor should start the program again")
        status = "; ".join(filter(None, [*(ear.status() for ear in self._ears), self._publisher.status()]))
        notify(f"WATCHDOG=1\nSTATUS={status}")
        self._follow_the_hours()
        self._look()
        if now_s - self._health_at_s >= HEALTH_S:
            self._tell_health()

    def _follow_the_hours(self) -> None:
        profile = in_force(self._profiles, datetime.now())
        if profile is self._profile:
            return
        if profile.name != self._profile.name:
            log.info("profile %s is in force", profile.name or "of the day")
        self._profile = profile
        self._use(profile.thresholds, range(len(self._ears)))

    def _take_wishes(self) -> None:
        """Thresholds set over MQTT, until the settings are read again or another profile is in force.

        `off` follows `on` down, and is its own again above.
        """
        slots = {ear.name: slot for slot, ear in enumerate(self._ears)}
        for (source, label), on in self._publisher.wishes().items():
            slot, own = slots[source], self._profile.thresholds[label]
            self._use({**self._thresholds[slot], label: dataclasses.replace(own, on=on, off=min(own.off, on))}, [slot])

    def _take_new_settings(self) -> None:
        """What can change while running does; an error keeps everything as it is."""
        self._reloading = False
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        old = self._settings
        try:
            with self._reload() as (new, profiles):
                mqtt = dataclasses.replace(new.mqtt, root=old.mqtt.root) if new.mqtt.host and old.mqtt.host else old.mqtt
                self._publisher.use(mqtt)
        except UrbandetectError as error:
            log.error("%s; the settings in use stay", error)
        else:
            self._profiles = profiles
            self._follow_the_hours()
            if new.log_level != old.log_level:
                logging.getLogger().setLevel(new.log_level.upper())
            live = {key: getattr(new, key) for key in ("thresholds", "profile", "log_level")}
            self._settings = dataclasses.replace(old, mqtt=mqtt, **live)
            keys = [field.name for field in dataclasses.fields(new)]
            later = [key for key in keys if getattr(new, key) != getattr(self._settings, key)]
            log.info("settings read again%s", f"; restart urbandetect for what changed in {', '.join(later)}" if later else "")
        notify("READY=1")

    def _wait_s(self) -> float:
        """Until the next source may have a hop; microphones wake us themselves."""
        now = time.monotonic()
        waits = [
            ear.source.wait_s(self._pipeline.missing(slot)) if ear.source else max(0.0, ear.retry_at_s - now)
            for slot, ear in enumerate(self._ears)
            if not ear.ended
        ]
        return min([LONGEST_WAIT_S, *waits])


def run(daemon: Daemon) -> None:
    """Run until the end, SIGTERM or SIGINT; SIGHUP reads the settings again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    if not (sys.stdin and sys.stdin.isatty()):  # a terminal that closes sends it too, and means the end
        signal.signal(signal.SIGHUP, lambda *_: daemon.reload())
    end_when_it_hangs(daemon.progress, daemon.doing)
    daemon.run()
