"""Sample index -> monotonic time -> UTC, and how far the sound card's clock is from the computer's."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime

LEAK = 200e-6
"""Sound cards run within +-100 ppm of the system clock; twice that follows any of them, and moves an estimate 0.2 ms a second."""
DRIFT_S = 60.0
"""The earliest arrival of a minute is true to a millisecond; ten of them give the drift to 2 ppm, an hour's to less."""
DRIFT_POINTS = (10, 60)


class SampleClock:
    """When each sample of a session was heard, learned from when blocks arrived.

    A block is never early, only late by scheduling: the earliest arrival is the truest. A slow leak lets the card's drift through.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._zero_s: float | None = None
        self._heard = 0
        self._minute = -1
        self._earliest: deque[tuple[int, float]] = deque(maxlen=DRIFT_POINTS[1])  # (index, its sample 0) of each minute

    def observe(self, index: int, arrived_s: float) -> None:
        """Note that the sample before `index` was there at monotonic time `arrived_s`."""
        zero_s = arrived_s - index / self.rate
        if self._zero_s is None:
            self._zero_s = zero_s
        else:
            self._zero_s = min(self._zero_s + LEAK * max(0, index - self._heard) / self.rate, zero_s)
        self._heard = max(self._heard, index)
        minute = int(index / self.rate / DRIFT_S)
        if minute != self._minute:
            self._minute = minute
            self._earliest.append((index, zero_s))
        elif zero_s < self._earliest[-1][1]:
            self._earliest[-1] = (index, zero_s)

    @property
    def drift_ppm(self) -> float | None:
        """How much faster than the computer's clock the card counts, over the last hour; None before there are ten minutes.

        The minute under way is left out: its earliest arrival may be still to come.
        """
        if len(self._earliest) <= DRIFT_POINTS[0]:
            return None
        (first, first_s), (last, last_s) = self._earliest[0], self._earliest[-2]
        return -(last_s - first_s) / ((last - first) / self.rate) * 1e6

    def utc(self, seconds: float) -> datetime:
        """UTC of a time given in seconds since the session's first sample. Follows steps of the system clock."""
        zero_s = time.monotonic() if self._zero_s is None else self._zero_s
        return datetime.fromtimestamp(zero_s + seconds + time.time() - time.monotonic(), UTC)


def slept_s() -> float:
    """How long this computer has been suspended since it was started; 0 where that cannot be known."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boottime) - time.monotonic() if boottime is not None else 0.0
