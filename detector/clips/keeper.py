"""Looks on while the daemon hears, and keeps the sound of its events: cut in the loop, written by a thread of its own.

The loop hands clips over and goes on. Nothing here can hold it up, and no failure here ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

from detector.audio.source import Block
from detector.clips.cut import Cut, Cutter, Form
from detector.clips.flac import flac, sealer
from detector.clips.shelf import PLAIN, SEALED, Shelf, name_of
from detector.config import Settings, clips_folder
from detector.errors import SettingError, TryAgainError, UrbandetectError, not_written
from detector.model import Description, Threshold
from detector.observer import Observer, Sound
from detector.tracker import Change

log = logging.getLogger(__name__)

WAITING_BYTES = 64_000_000
"""Of samples that wait for the disk: five minutes at 48 kHz. Past it clips are dropped."""
RETRY_S = 10.0
"""A disk that failed is tried again after so long."""
TIDY_S = 60.0
"""How often what has become too old is looked for."""
SAY_S = 60.0
"""Trouble lasts longer than anyone wants to read of it."""
STOP_S = 2.0
"""What waits at the end has so long to be written: who asked the daemon to stop waits for it."""
LONGEST_HELD_S = 60.0
"""Where an event needs longer to begin or end (`min_on_s`, `min_off_s`), its clip may begin later, or reach max_s in vain."""
LONGEST_NAME_BYTES = 150
"""Of a label in the name of a file, which has 255 on every file system in use."""


class Clips(Observer):
    """Keeps a clip of every event of the labels that are wanted."""

    def __init__(self, settings: Settings, model: Description) -> None:
        """Raises SettingError for a label the model has not, a recipient who is none, a package that is missing; TryAgainError when
        another process keeps its clips in this folder."""
        clips = settings.clips
        for label in clips.labels:
            if label not in model.labels:
                raise SettingError("clips.labels", f"the model has no label {label!r}", f"it has {', '.join(model.labels)}")
        for label in model.labels:
            if len(label.encode()) > LONGEST_NAME_BYTES:
                what = f"the label {label} is too long for a file's name"
                raise SettingError("clips", what, "export the model with shorter ones")
        self._labels = set(clips.labels or model.labels)
        self._model = model
        self._form = Form(clips.before_s, clips.after_s, clips.max_s)
        self._seal = sealer(clips.recipient) if clips.recipient else None
        self._ending = SEALED if clips.recipient else PLAIN
        self._folder = clips_folder(settings)
        self._shelf = Shelf(self._folder, round(clips.max_mb * 1e6), clips.max_days * 86_400)
        self._cutters: dict[str, Cutter] = {}
        self._longest: dict[str, tuple[int, int]] = {}
        """For each source how late an event may begin and end to be told: the longest min_on_s and min_off_s, in samples."""
        self._news = threading.Condition()
        self._waiting: deque[Cut] = deque()
        self._stopping = False
        self._where = f"clips {self._folder}"
        self._dropped, self._drop_said_s, self._trouble = 0, float("-inf"), ""
        self._failure: UrbandetectError | None = None
        """Why the last one that was not written was not."""
        self._thread = threading.Thread(target=self._run, name="clips", daemon=True)
        try:
            self._shelf.lock()
        except OSError as error:
            self._failed(error)

    def start(self) -> None:
        log.info("clips: %s", self._folder)
        self._thread.start()

    def use(self, source: str, thresholds: Mapping[str, Threshold]) -> None:
        def longest(seconds: Iterable[float]) -> int:
            return ceil(min(LONGEST_HELD_S, max(seconds)) * self._model.sample_rate)

        every = thresholds.values()
        self._longest[source] = longest(t.min_on_s for t in every), longest(t.min_off_s for t in every)

    def begin(self, source: str, session: str, rate: int) -> None:
        self._cutters[source] = Cutter(rate, self._model.sample_rate, self._model.hop, self._form)

    def block(self, source: str, block: Block) -> None:
        self._hand_over(self._cutters[source].block(block))

    def stepped(self, took_s: float, sounds: Sequence[Sound]) -> None:
        for sound in sounds:
            self._hand_over(self._cutters[sound.source].stepped(sound.first, *self._longest[sound.source]))

    def more(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """`clip`: where its sound will be, below the folder; None when it is of no wanted label."""
        return {"clip": name_of(event, self._ending) if event["label"] in self._labels else None}

    def event(self, event: dict[str, Any], change: Change) -> None:
        if event["clip"]:
            self._hand_over(self._cutters[event["source"]].event(event["clip"], event, change))

    def end(self, source: str) -> None:
        self._hand_over(self._cutters[source].end())

    def facts(self) -> dict[str, Any]:
        """How many are kept, their bytes, how many were given up since the start, and why none is written now."""
        shelf = self._shelf
        return {"clips": {"kept": shelf.count, "bytes": shelf.size_bytes, "dropped": self._dropped, "trouble": self._trouble}}

    def stop(self) -> UrbandetectError | None:
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.ident:
            self._thread.join(STOP_S)
        if not (missing := self._dropped + len(self._waiting)):
            return None
        why = self._failure or TryAgainError(self._where, "the disk is too slow", "set another clips.folder")
        return type(why)(why.where, f"{why.what}; {missing} clips were not kept", why.fix)

    def _hand_over(self, cuts: Iterable[Cut]) -> None:
        for cut in cuts:
            with self._news:
                if self._waiting and 4 * sum(each.samples for each in (*self._waiting, cut)) > WAITING_BYTES:
                    slow = TryAgainError(self._where, "more wait than memory is for: this computer is too slow")
                    self._drop((self._trouble and self._failure) or slow)
                else:
                    self._waiting.append(cut)
                    self._news.notify()

    def _drop(self, why: UrbandetectError) -> None:
        self._dropped, self._failure = self._dropped + 1, why
        if time.monotonic() - self._drop_said_s >= SAY_S:
            self._drop_said_s = time.monotonic()
            log.warning("%s; one is not kept, %d so far", why, self._dropped)

    # What follows runs in the thread of its own.

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._stopping, TIDY_S)
                cut = self._waiting[0] if self._waiting else None
                if cut is None and self._stopping:
                    return
            try:
                self._keep(cut)
            except (OSError, TryAgainError) as error:
                self._failed(error)
                with self._news:
                    if self._news.wait_for(lambda: self._stopping, RETRY_S):
                        return
                continue
            except Exception as error:  # noqa: BLE001 - of one clip: said, and the next is kept
                with self._news:
                    self._drop(not_written(self._where, "clips.folder", error))
            if self._trouble:
                log.warning("clips %s: they are written again", self._folder)
                self._trouble = ""
            with self._news:
                if cut:
                    self._waiting.popleft()

    def _keep(self, cut: Cut | None) -> None:
        """Write one, or only look after the folder."""
        self._shelf.lock()
        self._shelf.tidy(time.time())
        if cut:
            data = flac(cut)
            self._shelf.write(cut.name, self._seal(data) if self._seal else data)

    def _failed(self, error: OSError | TryAgainError) -> None:
        """Note what the disk said; say it when it is news."""
        self._failure = not_written(self._where, "clips.folder", error)
        if not self._trouble:
            log.warning("%s; detection goes on, and it is tried again", self._failure)
        self._trouble = getattr(error, "strerror", None) or self._failure.what
        self._shelf.unlock()
