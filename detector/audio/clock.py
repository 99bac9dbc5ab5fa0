"""Sample index -> monotonic time -> UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime

LEAK = 200e-6
"""Sound cards run within +-100 ppm of the system clock; twice that follows any of them, and moves an estimate 0.2 ms a second."""


class SampleClock:
    """When each sample of a session was heard, learned from when blocks arrived.

    A block is never early, only late by scheduling: the earliest arrival is the truest. A slow leak lets the card's drift through.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._zero_s: float | None = None
        self._heard = 0

    def observe(self, index: int, arrived_s: float) -> None:
        """Note that the sample before `index` was there at monotonic time `arrived_s`."""
        zero_s = arrived_s - index / self.rate
        if self._zero_s is None:
            self._zero_s = zero_s
        else:
            self._zero_s = min(self._zero_s + LEAK * max(0, index - self._heard) / self.rate, zero_s)
        self._heard = max(self._heard, index)

    def utc(self, seconds: float) -> datetime:
        """UTC of a time given in seconds since the session's first sample. Follows steps of the system clock."""
        zero_s = time.monotonic() if self._zero_s is None else self._zero_s
        return datetime.fromtimestamp(zero_s + seconds + time.time() - time.monotonic(), UTC)
