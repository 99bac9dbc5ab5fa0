"""Recordings, offline: the daemon's own pipeline as fast as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.audio.file import FileSource
from detector.model import Model, Threshold
from detector.pipeline import Pipeline


@dataclass(frozen=True)
class Found:
    """One finished event of a file; onset and offset in seconds from its begin, score the peak."""

    file: str
    label: str
    onset_s: float
    offset_s: float
    score: float


def scan(path: Path, model: Model, thresholds: Mapping[str, Threshold] | None = None) -> Iterator[Found]:
    """The events of one file in the order in which they end. Raises InputError for a file that cannot be read."""
    source = FileSource(path)
    rate = model.description.sample_rate
    pipeline = Pipeline(model, 1, thresholds)
    pipeline.begin(0, source.rate)
    try:
        while not source.ended:
            block = source.read()
            if block is None:
                changes = pipeline.finish(0)
            else:
                changes = pipeline.feed(0, block) + [change for _, change in pipeline.advance()]
            for change in changes:
                if change.phase == "end":
                    yield Found(str(path), change.label, change.onset / rate, change.offset / rate, change.score)
    finally:
        source.close()
