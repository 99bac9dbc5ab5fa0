"""One source while the daemon runs: open or being looked for, with its session's clock, its level and its troubles."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from detector.audio.clock import SampleClock
from detector.audio.file import open_input
from detector.audio.level import Meter
from detector.audio.source import Source
from detector.audio.stillness import Stillness
from detector.audio.url import is_stream
from detector.config import SourceSettings
from detector.errors import InputError, SettingError
from detector.event import new_session

log = logging.getLogger(__name__)

REOPEN_S = (1.0, 30.0)
"""A lost microphone is looked for again after so long, doubling to the longer, with jitter so that many do not knock at once."""
STEADY_S = 10.0
"""Who was heard for so long and is lost is looked for at once; who comes and goes, ever later."""
STILL_S = 10.0
"""A pipe that gives nothing for so long stands still: whoever fills it hangs. Over a network it may lag by less."""
SILENT_S = 60.0
"""No street is digitally silent for so long: the microphone is muted or dead."""


@dataclass
class Ear:
    """source: None while it is looked for; session: empty between sessions; hearing: blocks come; trouble: why not, in words.

    level_s: how often its level is told; seq: number of the last event; began: when each label's event began; gaps: how often sound
    was missing, by reason; dropped_windows: rows never scored because we are too slow; silent: nothing but one value comes.
    """

    settings: SourceSettings
    level_s: float
    source: Source | None = None
    clock: SampleClock = field(default_factory=lambda: SampleClock(1))
    meter: Meter = field(default_factory=lambda: Meter(1000, 1.0))
    stillness: Stillness = field(default_factory=Stillness)
    session: str = ""
    hearing: bool = False
    trouble: str = ""
    silent: bool = False
    seq: int = 0
    began: dict[str, datetime] = field(default_factory=dict)
    gaps: Counter[str] = field(default_factory=Counter)
    dropped_windows: int = 0
    retry_s: float = REOPEN_S[0]
    retry_at_s: float = 0.0
    heard_since_s: float = 0.0
    heard_at_s: float = 0.0
    gap_said_s: float = float("-inf")

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def live(self) -> bool:
        """Whether it comes from a microphone, a stream or a pipe: a recording may well be silent."""
        return self.returns or self.settings.input == "-"

    @property
    def returns(self) -> bool:
        """Whether it can be opened again when it is lost: a microphone, or a stream."""
        return not self.settings.input or is_stream(self.settings.input)

    @property
    def ended(self) -> bool:
        return self.source is not None and self.source.ended

    def open(self, speed: float, wake: threading.Event) -> None:
        """Begin a session, or to connect to a stream. Raises what opening the source raises."""
        if is_stream(self.settings.input):
            from detector.audio.stream import Stream

            self.source = Stream(self.settings.input, wake, self.heard_at_s)
            return
        if self.settings.input:
            self.source = self._recording(speed)
        else:
            from detector.audio.microphone import Microphone

            self.source = Microphone(self.settings.device, wake)
        self.begin()

    def _recording(self, speed: float) -> Source:
        if self.settings.input == "-":
            return open_input("-", speed)
        try:
            return open_input(self.settings.input, speed)
        except InputError as error:
            raise SettingError("input", f"{self.settings.input}: {error.what}", error.fix, self.name) from error

    def begin(self) -> None:
        """A session of the source that is open."""
        assert self.source
        self.clock, self.session = SampleClock(self.source.rate), new_session()
        self.meter, self.stillness = Meter(self.source.rate, self.level_s), Stillness()

    def say(self, trouble: str) -> None:
        """It is not heard, and why: said when it is news."""
        log.log(logging.DEBUG if trouble == self.trouble else logging.WARNING, "%s: %s; looking for it", self.name, trouble)
        self.trouble = trouble

    def wait(self) -> None:
        """Look for it again later."""
        self.retry_at_s = time.monotonic() + self.retry_s * random.uniform(0.5, 1.0)
        self.retry_s = min(2 * self.retry_s, REOPEN_S[1])

    def heard(self) -> bool:
        """A block has come; True when none did before."""
        news, self.heard_at_s = not self.hearing, time.monotonic()
        if news:
            self.hearing, self.trouble, self.heard_since_s = True, "", self.heard_at_s
            log.info("%s: hearing", self.name)
        return news

    def stands_still(self) -> bool:
        """Whether a pipe that was heard gives nothing any more; a microphone says so itself."""
        return self.hearing and self.settings.input == "-" and time.monotonic() - self.heard_at_s > STILL_S

    def check_silence(self) -> bool:
        """True when digital silence has just become too long, or has ended."""
        silent = self.live and self.stillness.samples >= SILENT_S * self.clock.rate
        news, self.silent = silent != self.silent, silent
        if news and silent:
            log.warning("%s: digital silence for %g s: is the microphone muted or dead?", self.name, SILENT_S)
        elif news:
            log.info("%s: there is sound again", self.name)
        return news

    def lose(self) -> None:
        """The session is over."""
        if self.hearing and time.monotonic() - self.heard_since_s > STEADY_S:
            self.retry_s, self.retry_at_s = REOPEN_S[0], 0.0
        else:
            self.wait()
        self.session, self.hearing, self.silent = "", False, False

    def status(self) -> str:
        """In a few words, for people."""
        if self.hearing:
            return f"{self.name} silent: muted or dead?" if self.silent else f"{self.name} hearing"
        return f"{self.name} not heard: {self.trouble or 'no sound yet'}"

    def facts(self, lost_samples: int) -> dict[str, Any]:
        """For `health`."""
        drift_ppm = self.clock.drift_ppm
        return {
            "hearing": self.hearing,
            "silent": self.silent,
            "trouble": self.trouble,
            "gaps": dict(self.gaps),
            "lost_samples": lost_samples,
            "dropped_windows": self.dropped_windows,
            "clock_ppm": None if drift_ppm is None else round(drift_ppm, 1),
        }
