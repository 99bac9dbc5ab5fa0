"""Device rate -> model rate, block by block, without a seam."""

from __future__ import annotations

import numpy as np
import soxr

from detector.audio.source import Floats


class Resampler:
    """Streaming resampling by soxr: the blocks' outputs, put end to end, are the resampled whole."""

    def __init__(self, rate: int, to_rate: int) -> None:
        self._stream = None if rate == to_rate else soxr.ResampleStream(rate, to_rate, 1, dtype="float32")

    def push(self, samples: Floats, last: bool = False) -> Floats:
        """The output that is ready after these samples; `last` empties the filter."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), np.float32)
