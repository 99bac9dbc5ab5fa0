"""One recording, offline: the daemon's own pipeline as fast as it goes. Many of them: archive.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def scan(
    path: Path,
    model: Model,
    thresholds: Mapping[str, Threshold] | None = None,
    name: str = "",
    heard: Callable[[float], None] = lambda _: None,
) -> Iterator[Found]:
    """The events of one file in the order in which they end. Raises InputError for a file that cannot be read.

    name: what it is called, where that is not its path; heard: told after every block how many seconds are heard so far. The file
    is decoded in blocks of at most 6 s, and never split among processes: the network's state goes from its begin to its end.
    """
    source = FileSource(path, name=name)
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
                heard((block.first + len(block.samples)) / source.rate)
            for change in changes:
                if change.phase == "end":
                    yield Found(name or str(path), change.label, change.onset / rate, change.offset / rate, change.score)
    finally:
        source.close()
