"""A ring buffer addressed by absolute sample index."""

from __future__ import annotations

import numpy as np

from detector.audio.source import Floats


class Ring:
    """The newest `capacity` samples of an endless signal; any stretch of them is one contiguous view.

    Every sample is written twice, `capacity` apart, so that no window ever wraps. One thread may write and another read: a
    reader copies first and asks `holds` afterwards. end: index after the newest sample; channels: where a sample is one of each.
    """

    def __init__(self, capacity: int, *channels: int) -> None:
        self.capacity = capacity
        self.end = 0
        self._twice = np.zeros((2 * capacity, *channels), np.float32)

    def write(self, samples: Floats) -> None:
        """Append; of more than `capacity` samples only the newest are kept."""
        end = self.end + len(samples)
        kept = samples[-self.capacity :]
        at = (end - len(kept)) % self.capacity
        first = min(len(kept), self.capacity - at)
        for copy in (0, self.capacity):
            self._twice[copy + at : copy + at + first] = kept[:first]
            self._twice[copy : copy + len(kept) - first] = kept[first:]
        self.end = end

    def grow(self, capacity: int) -> None:
        """From now on hold at least so many; what is held stays. Not while another thread reads."""
        if capacity > self.capacity:
            first = max(0, self.end - self.capacity)
            held = self.view(first, self.end).copy()
            self.capacity, self._twice = capacity, np.zeros((2 * capacity, *self._twice.shape[1:]), np.float32)
            self.end = first
            self.write(held)

    def skip(self, count: int) -> None:
        """Note that `count` samples were never heard: the index moves on over zeros."""
        self.write(np.zeros((min(count, self.capacity), *self._twice.shape[1:]), np.float32))
        self.end += max(0, count - self.capacity)

    def holds(self, start: int) -> bool:
        """Whether everything from `start` on is still there."""
        return start >= self.end - self.capacity

    def view(self, start: int, stop: int) -> Floats:
        """Samples start..stop, not copied; they must be held: end - capacity <= start <= stop <= end."""
        if not max(0, self.end - self.capacity) <= start <= stop <= self.end:
            raise IndexError(f"samples {start}..{stop} are not held, {max(0, self.end - self.capacity)}..{self.end} are")
        at = start % self.capacity
        return self._twice[at : at + stop - start]
