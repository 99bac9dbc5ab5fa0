"""The one interface of everything that gives samples: a Source yields Blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LONGEST_BLOCK_S = 6.0
"""No block is longer: some minutes of one would be as much memory, and as long without an answer."""
LATE_S = 3.0
"""A live source whose reader is further behind goes on with what is new: a detector that lags for ever helps nobody."""

Reason = Literal["", "overflow", "overload", "jump"]
REASONS: dict[Reason, str] = {
    "overflow": "the sound card's buffer ran over",
    "overload": "this computer is too slow",
    "jump": "the stream's timestamps jumped",
}
"""Why samples are missing, for people."""


@dataclass(frozen=True)
class Block:
    """Samples as they arrived.

    samples: mono float32 [n] in -1..1 at the source's rate; first: index of the first one since the session began, so that a jump
    against the end of the block before is a gap; arrived_s: monotonic time at which the last one was there; reason: why samples
    before it are missing, of REASONS.
    """

    samples: Floats
    first: int
    arrived_s: float
    reason: Reason = ""


class Source(Protocol):
    """Something that hears. rate: samples per second, 0 while it is not known; ended: no block will ever come again."""

    rate: int
    ended: bool

    def read(self) -> Block | None:
        """The next block, or None when there is none yet. Never waits. Raises SourceLost when the device has gone."""

    def wait_s(self, samples: int) -> float:
        """Seconds until so many samples may be there, unless the source wakes its reader before, as soon as they are."""

    def close(self) -> None:
        """Let go of the device or file. Safe to call twice."""


class SourceLost(Exception):
    """The device stopped giving samples; open it again."""
