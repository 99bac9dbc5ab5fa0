"""Real street for training: recordings whose events somebody has annotated, one after the other, with backgrounds in between.

A soundscape mixes clips over beds that were recorded elsewhere. A recording has what no mixture has: the sound between its events,
which is no event, and each event as far away and as clean as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.errors import InputError
from trainer.data import Decoded, decode, folds_in_words
from trainer.stream_sounds import load_recordings
from trainer.streams import BLOCK, CLEAR, FADE_S, OTHER_S, SILENCE, SLICE_S, Event, Soundscape, faded, floats, piece

LONGEST_S = 20.0
"""Of one recording in a row: then comes another."""
LEAD_S = 5.0
"""At most so much of a recording is heard before the event it was drawn for."""
BETWEEN = 0.3
"""How often a background comes instead of a recording."""
GAIN_DB = (-12.0, 6.0)
"""To the level each was recorded at."""
LATE_S = 2.0
"""An event annotated by whole slices may go on so long: its label is neither asked for nor forbidden there."""


@dataclass(frozen=True)
class Annotated:
    """Recordings and what is known to be in them: events, per recording (label, onset, offset) in samples; by_label, per label its
    recordings, positions in `audio`."""

    audio: Decoded
    events: tuple[tuple[tuple[int, int, int], ...], ...]
    by_label: tuple[tuple[int, ...], ...]


def annotated(table: Path, labels: Sequence[str], folds: Sequence[int], rate: int) -> Annotated:
    """The recordings of these folds of a table (`file`, `class`, `onset_s`, `offset_s`, `fold`), decoded at `rate`.

    Of a recording its first 60 s count, as of every background. Raises InputError for a table or a recording that cannot be read,
    and where none of these folds holds an event.
    """
    rows = load_recordings(table, labels, folds)
    audio = decode([row.path for row in rows], rate)
    lengths = np.diff(audio.starts).tolist()
    events = tuple(
        tuple(
            (labels.index(event.label), round(event.onset_s * rate), min(length, round(event.offset_s * rate)))
            for event in row.events
            if event.onset_s * rate < length - BLOCK
        )
        for row, length in zip(rows, lengths, strict=True)
    )
    by_label = tuple(tuple(i for i, row in enumerate(events) if any(e[0] == label for e in row)) for label in range(len(labels)))
    if not any(by_label):
        raise InputError(str(table), f"has no event within its recordings of {folds_in_words(folds)}")
    return Annotated(audio, events, by_label)


def recorded(known: Annotated, beds: Decoded | None, rate: int, samples: int, seed: Sequence[int]) -> Soundscape:
    """The street of this seed, `samples` long: a label by the root of how many recordings it has, one of these, one of its events.

    Within an annotated event its label sounds where it is within 30 dB of its loudest block; where that is not clear, and for
    LATE_S after an event that lasts as long as a slice, it is faint. Everywhere else nothing sounds: what a recording holds besides
    is not annotated, but little of it is of the labels.
    """
    draw = np.random.default_rng(seed)
    fade, longest = int(FADE_S * rate), int(LONGEST_S * rate)
    audio = np.zeros(samples + fade, np.float32)
    active = np.zeros((-(-samples // BLOCK), len(known.by_label)), bool)
    faint = np.zeros_like(active)
    middles = np.arange(len(active)) * BLOCK + BLOCK // 2
    share = np.sqrt([len(recordings) for recordings in known.by_label])
    events: list[Event] = []
    at = 0
    while at < samples:
        inside: list[tuple[int, int, int]] = []
        if beds and draw.random() < BETWEEN:
            heard = piece(beds, int(OTHER_S * rate), draw)
        else:
            label = int(draw.choice(len(share), p=share / share.sum()))
            which = int(draw.choice(known.by_label[label]))
            whole, all_events = known.audio[which], known.events[which]
            _, onset, _ = all_events[draw.integers(len(all_events))]
            first = max(0, onset - int(draw.uniform(0, LEAD_S) * rate)) if len(whole) > longest else 0
            heard = floats(whole[first : first + longest])
            inside = [(label, at + onset - first, at + offset - first) for label, onset, offset in all_events]
        heard = heard[: samples + fade - at]
        end = min(samples, at + len(heard))
        for label, onset, offset in inside:
            onset, offset = max(at, onset), min(end, offset)
            if offset - onset < BLOCK:
                continue
            sound = heard[onset - at : offset - at]
            square = np.add.reduceat(np.square(sound), np.arange(0, len(sound), BLOCK))
            rows = np.flatnonzero((middles >= onset) & (middles < offset))
            level = square[(middles[rows] - onset) // BLOCK] / (square.max() or 1)
            active[rows, label] = level > SILENCE
            faint[rows, label] = level <= CLEAR
            if offset - onset >= (SLICE_S - FADE_S) * rate:
                faint[(middles >= offset) & (middles < min(end, offset + int(LATE_S * rate))), label] = True
            events.append(Event(label, onset, offset, np.nan))
        audio[at : at + len(heard)] += faded(heard, rate) * np.float32(10 ** (draw.uniform(*GAIN_DB) / 20))
        at += max(1, len(heard) - fade)
    return Soundscape(np.clip(audio[:samples], -1, 1), tuple(sorted(events, key=lambda e: e.onset)), active, faint)
