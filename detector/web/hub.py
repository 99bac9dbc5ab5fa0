"""From the daemon's loop to the browsers: bounded hand-overs that drop what is old, and nothing computed while nobody looks."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detector.audio.level import dbfs
from detector.observer import Sound

BANDS = 72
"""Of the spectrogram: about nine an octave of a street's sounds."""
LOWEST_HZ = 50.0
"""Below it there is wind, and the hum of the mains."""
RANGE_DB = 100.0
"""What the picture shows, down from a full-scale sine: more than 16 bit hold in a band."""
SOUNDS = 128
"""On their way to the web's thread: ten seconds of one source, so a thread that is held up a moment loses nothing ..."""
MESSAGES = 4096
"""... and what else there is: past it, events are missing on the page."""
WAITING = 128
"""Messages that wait for one browser: ten seconds of one source. Past it the browser begins anew with how things are now."""
MOST_BROWSERS = 8
"""Each costs little, but a page left open in every tab must not add up."""
RECENT = 50
"""Events that a page shows which has just been opened."""
BEAT_S = 10.0
"""A line so often, that a browser which has gone is noticed."""


@dataclass
class Browser:
    """One page that is open. stale: what it has is too old, it wants to begin anew."""

    news: asyncio.Event
    waiting: deque[str] = field(default_factory=deque)
    stale: bool = True

    def offer(self, message: str) -> None:
        """A message for it, or, when it is too slow for all of them, a new beginning."""
        if len(self.waiting) >= WAITING:
            self.waiting.clear()
            self.stale = True
        self.waiting.append(message)
        self.news.set()


class Hub:
    """`put` is called by the daemon's loop; everything else runs in the web's thread, between `open` and `close`."""

    def __init__(self, rate: int, hop: int, facts: Mapping[str, Any]) -> None:
        """rate, hop: of the model; facts: what a page must know that never changes."""
        self.watched = False
        self._hop, self._rate, self._facts = hop, rate, dict(facts)
        self._window = np.hanning(hop).astype(np.float32)
        edges = np.geomspace(LOWEST_HZ, rate / 2, BANDS + 1)
        self._edges_hz = [round(edge) for edge in edges.tolist()]
        self._bins = np.minimum(np.round(edges[:-1] * hop / rate).astype(np.intp), hop // 2)
        self._sounds: deque[Sound] = deque(maxlen=SOUNDS)
        self._messages: deque[tuple[str, Any]] = deque(maxlen=MESSAGES)
        self._called = False
        self._browsers: list[Browser] = []
        self._recent: dict[str, dict[str, Any]] = {}
        self._now: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, what: Sound | tuple[str, Any]) -> None:
        """Sound, or a message by its kind: `event`, or a state (`stages`, `thresholds`) that counts when it is new. Never waits."""
        if isinstance(what, Sound):
            self._sounds.append(what)
        else:
            self._messages.append(what)
        loop = self._loop
        if loop is not None and not self._called:
            self._called = True
            try:
                loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # that loop has ended; the next one takes it
                self._called = False

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on messages are taken in this loop."""
        self._loop, self._called = loop, False
        self._take()

    def close(self) -> None:
        """Let every browser go."""
        self._loop, self.watched = None, False
        for browser in self._browsers:
            browser.waiting.clear()
            browser.news.set()

    def full(self) -> bool:
        return len(self._browsers) >= MOST_BROWSERS

    @property
    def browsers(self) -> int:
        return len(self._browsers)

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events for one more browser: first how things are, then what is new, as fast as it takes them."""
        browser = Browser(asyncio.Event())
        self._browsers.append(browser)
        self.watched = True
        try:
            while self._loop is not None:
                if browser.stale:
                    browser.stale = False
                    browser.waiting.appendleft(self._hello())
                if browser.waiting:
                    text = "".join(browser.waiting)
                    browser.waiting.clear()
                    yield text
                    continue
                browser.news.clear()
                try:
                    await asyncio.wait_for(browser.news.wait(), BEAT_S)
                except TimeoutError:
                    yield ": beat\n\n"
        finally:
            self._browsers.remove(browser)
            self.watched = bool(self._browsers)

    def _take(self) -> None:
        """What the daemon's loop has left."""
        self._called = False
        while self._sounds:
            sound = self._sounds.popleft()
            if self._browsers:
                self._tell("sound", self.column(sound))
        while self._messages:
            kind, value = self._messages.popleft()
            if kind == "event":
                self._recent[value["id"]] = value
                if len(self._recent) > RECENT:
                    del self._recent[next(iter(self._recent))]
            elif self._now.get(kind) == value:
                continue
            else:
                self._now[kind] = value
            self._tell(kind, value)

    def _tell(self, kind: str, value: Any) -> None:
        message = _message(kind, value) if self._browsers else ""
        for browser in self._browsers:
            browser.offer(message)

    def _hello(self) -> str:
        return _message(
            "hello",
            self._facts
            | self._now
            | {"recent": list(self._recent.values()), "edges_hz": self._edges_hz, "row_s": self._hop / self._rate},
        )

    def column(self, sound: Sound) -> dict[str, Any]:
        """For the page: per row the strongest line of each band, 0 (RANGE_DB down) to 255 (a full-scale sine), scores in
        thousandths, the level."""
        rows = sound.samples.reshape(-1, self._hop) * self._window
        power = np.abs(np.fft.rfft(rows, axis=1)) ** 2 / (self._hop / 4) ** 2  # of a sine of amplitude 1: 1
        bands = np.maximum.reduceat(power, self._bins, axis=1)
        shade = np.clip((10 * np.log10(bands + 1e-12) / RANGE_DB + 1) * 255, 0, 255).astype(np.uint8)
        return {
            "source": sound.source,
            "ends": round(sound.ends_s, 3),
            "bands": [base64.b64encode(row.tobytes()).decode() for row in shade],
            "scores": np.round(sound.scores * 1000).astype(int).tolist(),
            "dbfs": [round(dbfs(mean_square), 1) for mean_square in sound.mean_squares.tolist()],
        }


def _message(kind: str, value: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n"
