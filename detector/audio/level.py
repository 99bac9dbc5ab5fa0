"""Sound level in dBFS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detector.audio.source import Floats

SILENCE_DBFS = -120.0
"""What digital silence is reported as: JSON has no minus infinity."""


def dbfs(mean_square: float) -> float:
    """Level of a mean square in dB relative to a full-scale sine (AES17: the sine is 0 dBFS), at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(2 * mean_square)) if mean_square > 0 else SILENCE_DBFS


@dataclass
class Meter:
    """The level of what is heard, and for how long nothing at all was: no living microphone gives the same value for long.

    square_sum, samples: since the last `take`; still_samples: how many have had one value, up to now.
    """

    square_sum: float = 0.0
    samples: int = 0
    still_samples: int = 0
    _last: float = math.nan

    def hear(self, samples: Floats) -> None:
        """Count samples in."""
        self.square_sum += float(np.dot(samples, samples))
        self.samples += len(samples)
        moved = np.flatnonzero(samples != (samples[-1] if len(samples) else 0))
        alike = len(samples) - (int(moved[-1]) + 1 if len(moved) else 0)
        if len(moved) or (len(samples) and samples[0] != self._last):
            self.still_samples = 0
        self.still_samples += alike
        self._last = float(samples[-1]) if len(samples) else self._last

    def take(self) -> float:
        """The level in dBFS since the last call."""
        level = dbfs(self.square_sum / self.samples) if self.samples else SILENCE_DBFS
        self.square_sum, self.samples = 0.0, 0
        return level
