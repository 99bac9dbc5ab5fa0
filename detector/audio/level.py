"""Sound level in dBFS."""

from __future__ import annotations

import math

SILENCE_DBFS = -120.0
"""What digital silence is reported as: JSON has no minus infinity."""


def dbfs(mean_square: float) -> float:
    """Level of a mean square in dB relative to a full-scale sine (AES17: the sine is 0 dBFS), at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(2 * mean_square)) if mean_square > 0 else SILENCE_DBFS
