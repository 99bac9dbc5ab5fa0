"""Soundscapes as files, with the table of their events: to measure another detector on, or to listen to."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from detector.errors import InputError
from trainer.data import background_files, decode, load_dataset, must_have
from trainer.files import write_whole
from trainer.streams import Floats, bank, soundscape

RATE = 22_050
"""Of soundscapes written to files, samples a second."""


def write_soundscapes(
    out: Path,
    data_folder: Path,
    folds: Sequence[int],
    backgrounds: Sequence[Path] = (),
    count: int = 60,
    length_s: float = 40.0,
    seed: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> str:
    """Write `count` soundscapes as `out`/SEED-0001.wav ... with two tables, and say in a line what they hold.

    A soundscape is made of the clips of one fold; the folds take turns. Of the backgrounds it has those that only measure.
    events.csv has a row an event (file, class, onset_s, offset_s, fold, snr_db), soundscapes.csv a row a file, those without any
    event too (file, length_s, fold, events). Raises InputError where `out` holds something, and for what the data lacks.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(str(out), "is there already and not an empty folder", "give a new folder")
    data = load_dataset(data_folder)
    must_have(data, folds)
    data = replace(data, clips=tuple(clip for clip in data.clips if clip.fold in folds))
    clips = decode(data.paths, RATE)
    beds = decode(background_files(backgrounds, "test"), RATE) if backgrounds else None
    banks = [bank(data, data.of_folds([fold]), clips, beds, RATE) for fold in folds]
    events: list[dict[str, str | int]] = []
    files: list[dict[str, str | int]] = []
    for index in progress(range(count), count):
        made = soundscape(banks[index % len(folds)], int(length_s * RATE), [seed, index])
        name, fold = f"{seed}-{index + 1:04d}.wav", folds[index % len(folds)]

        def write(partial: Path, audio: Floats = made.audio) -> None:
            soundfile.write(partial, audio, RATE, "PCM_16", format="WAV")

        write_whole(out / name, write)
        files.append({"file": name, "length_s": f"{len(made.audio) / RATE:.5f}", "fold": fold, "events": len(made.events)})
        events += [
            {
                "file": name,
                "class": data.labels[event.label],
                "onset_s": f"{event.onset / RATE:.5f}",
                "offset_s": f"{event.offset / RATE:.5f}",
                "fold": fold,
                "snr_db": f"{event.snr_db:.1f}",
            }
            for event in made.events
        ]
    _table(out / "soundscapes.csv", ("file", "length_s", "fold", "events"), files)
    _table(out / "events.csv", ("file", "class", "onset_s", "offset_s", "fold", "snr_db"), events)
    empty = sum(not file["events"] for file in files)
    return f"{out}: {count} soundscapes, {count * length_s / 60:.1f} min, {len(events)} events, {empty} without any"


def _table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str | int]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)

    write_whole(path, write)
