"""Sound levels: relative to full scale always, in dB(A) of sound pressure for a calibrated microphone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detector.audio.source import Block
from detector.audio.weighting import AWeighting, Doubles

SILENCE_DBFS = -120.0
"""What digital silence is reported as: JSON has no minus infinity."""
FAST_S = 0.125
"""Time constant of time weighting F (IEC 61672-1:2013, 5.8)."""
SAMPLED_S = 0.1
"""How often the F-weighted level is looked at for the percentiles: less than its time constant, so that no moment is missed."""
LONGEST_S = 0.25
"""What is weighted at once: two time constants, for rounding grows with what is faded."""
SETTLED_S = 1.0
"""Time weighting F begins a session at nothing and is within 0.002 dB of a steady sound after so long: until then nothing counts
for the percentiles."""


def dbfs(mean_square: float) -> float:
    """Level of a mean square in dB relative to a full-scale sine (AES17: the sine is 0 dBFS), at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(2 * mean_square)) if mean_square > 0 else SILENCE_DBFS


def pressure_level(level_dbfs: float, calibration_db: float | None) -> float | None:
    """In dB re 20 uPa, to a tenth; None without a calibration. calibration_db: the sound pressure level of a full-scale sine."""
    return None if calibration_db is None else round(level_dbfs + calibration_db, 1)


@dataclass(frozen=True)
class Level:
    """Of one interval, in dB relative to a full-scale sine; all but dbfs A-weighted.

    end: index after its last sample; dbfs, dbfs_a: equivalent continuous level; fast_max: highest F-weighted level; exceeded: the
    F-weighted levels exceeded for 10, 50 and 90 % of the interval, None where the session is too young.
    """

    end: int
    interval_s: float
    dbfs: float
    dbfs_a: float
    fast_max: float
    exceeded: tuple[float, float, float] | None

    def told(self, calibration_db: float | None) -> dict[str, float | None]:
        """What the world is told of it: LAeq, LAFmax and the percentiles only of a calibrated microphone, dbfs_a of any."""
        l10, l50, l90 = (pressure_level(level, calibration_db) for level in self.exceeded) if self.exceeded else (None,) * 3
        return {
            "interval_s": round(self.interval_s, 3),
            "dbfs": round(self.dbfs, 1),
            "dbfs_a": round(self.dbfs_a, 1),
            "laeq": pressure_level(self.dbfs_a, calibration_db),
            "lafmax": pressure_level(self.fast_max, calibration_db),
            "l10": l10,
            "l50": l50,
            "l90": l90,
        }


class Meter:
    """An integrating sound level meter: LAeq, LAFmax, L10, L50, L90 (IEC 61672-1:2013; ISO 1996-1:2016, 3.1).

    LN is the A- and F-weighted level exceeded for N % of the interval, as ISO 1996-1 has it, here of a value every SAMPLED_S. An
    interval is exactly so many samples heard, however they come in blocks; a gap only makes it last longer.
    """

    def __init__(self, rate: int, interval_s: float) -> None:
        """interval_s: of at least one sample."""
        self._rate = rate
        self._weighting = AWeighting(rate)
        self._interval = round(interval_s * rate)
        self._sampled = round(SAMPLED_S * rate)
        n = np.arange(1, round(LONGEST_S * rate) + 1) / (FAST_S * rate)
        self._fade, self._gain = np.exp(-n), np.exp(n) * -math.expm1(-1 / (FAST_S * rate))
        self._expected = self._heard = 0
        self._fast = 0.0
        self._begin()

    def hear(self, block: Block) -> tuple[Doubles, list[Level]]:
        """The block's A-weighted samples, one for one, and the intervals that end in it."""
        if block.first != self._expected:
            self._weighting = AWeighting(self._rate)
        self._expected = block.first + len(block.samples)
        weighted = self._weighting.push(block.samples)
        levels, at = [], 0
        while at < len(weighted):
            count = min(len(weighted) - at, self._interval - self._samples, len(self._fade))
            self._count(block.samples[at : at + count].astype(np.float64), weighted[at : at + count])
            at += count
            if self._samples == self._interval:
                levels.append(self._level(block.first + at))
                self._begin()
        return weighted, levels

    def _begin(self) -> None:
        self._samples, self._sum, self._sum_a, self._fast_max = 0, 0.0, 0.0, 0.0
        self._looks: list[float] = []

    def _count(self, samples: Doubles, weighted: Doubles) -> None:
        """At most LONGEST_S, and no further than the interval's end."""
        squares = np.square(weighted)
        # y[n] = y[n-1] + (x[n] - y[n-1]) (1 - exp(-1 / (FAST_S rate))), all n at once; exp(n) stays below 7.4
        fast = self._fade[: len(squares)] * (self._fast + np.cumsum(self._gain[: len(squares)] * squares))
        self._fast = float(fast[-1])
        self._fast_max = max(self._fast_max, float(fast.max()))
        self._sum += float(np.dot(samples, samples))
        self._sum_a += float(squares.sum())
        self._samples += len(samples)
        for at in range(self._sampled - self._heard % self._sampled, len(samples) + 1, self._sampled):
            if self._heard + at >= SETTLED_S * self._rate:
                self._looks.append(dbfs(float(fast[at - 1])))
        self._heard += len(samples)

    def _level(self, end: int) -> Level:
        n = self._interval
        l90, l50, l10 = map(float, np.percentile(self._looks, (10, 50, 90))) if self._looks else (0.0, 0.0, 0.0)
        exceeded = (l10, l50, l90) if self._looks else None
        return Level(end, n / self._rate, dbfs(self._sum / n), dbfs(self._sum_a / n), dbfs(self._fast_max), exceeded)
