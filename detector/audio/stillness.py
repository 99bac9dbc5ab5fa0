"""For how long nothing at all was heard: no living microphone gives the same value for long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detector.audio.source import Floats


@dataclass
class Stillness:
    """samples: how many have had one value, up to now."""

    samples: int = 0
    _last: float = math.nan

    def hear(self, samples: Floats) -> None:
        """Count samples in."""
        moved = np.flatnonzero(samples != (samples[-1] if len(samples) else 0))
        alike = len(samples) - (int(moved[-1]) + 1 if len(moved) else 0)
        if len(moved) or (len(samples) and samples[0] != self._last):
            self.samples = 0
        self.samples += alike
        self._last = float(samples[-1]) if len(samples) else self._last
