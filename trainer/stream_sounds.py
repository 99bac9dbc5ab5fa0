"""What a model is measured on: recordings with known events, soundscapes of unseen clips, synthetic sound that holds nothing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from detector.audio.source import Floats
from detector.errors import InputError
from trainer.data import DataSet, background_files, decode, folds_in_words
from trainer.stream_metrics import Truth
from trainer.streams import Soundscape, bank, soundscape

COLUMNS = ("file", "class", "onset_s", "offset_s")
SOUNDSCAPES, SOUNDSCAPE_S = 60, 40.0


@dataclass(frozen=True)
class Recording:
    """A recording and the events that are known to be in it; fold is None where the table has none."""

    path: Path
    fold: int | None
    events: tuple[Truth, ...]


def load_recordings(table: Path, labels: Sequence[str], folds: Sequence[int] = ()) -> list[Recording]:
    """The recordings of a CSV file with the columns COLUMNS, one row an event, and `fold` where folds are asked for.

    `file` is relative to the CSV's folder. Raises InputError for a missing file, column or value, or a class the model has not.
    """
    columns = (*COLUMNS, *(("fold",) if folds else ()))
    found: dict[str, tuple[int | None, list[Truth]]] = {}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(str(table), f"has no column {', '.join(missing)}", f"it needs {', '.join(columns)}")
            for row in reader:
                where = f"{table}:{reader.line_num}"
                try:
                    fold = int(row["fold"]) if row.get("fold") else None
                    event = Truth(row["class"], float(row["onset_s"]), float(row["offset_s"]))
                except (TypeError, ValueError):
                    raise InputError(where, "onset_s, offset_s and fold must be numbers") from None
                if event.label not in labels:
                    raise InputError(where, f"class {event.label!r} is no label of the model", f"it has {', '.join(labels)}")
                if not row["file"]:
                    raise InputError(where, "names no file")
                if not 0 <= event.onset_s < event.offset_s < float("inf"):
                    raise InputError(where, "an event must begin at 0 s or later, and end after that")
                if not folds or fold in folds:
                    found.setdefault(row["file"], (fold, []))[1].append(event)
    except OSError as error:
        raise InputError(str(table), f"cannot be read ({error.strerror})", "give the CSV file of the recordings") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(table), f"is not a CSV file ({error})") from error
    if not found:
        raise InputError(str(table), f"has no recording{' of ' + folds_in_words(folds) if folds else ''}")
    return [Recording(table.parent / name, fold, tuple(events)) for name, (fold, events) in sorted(found.items())]


def soundscapes(data: DataSet, quiet: Sequence[Path], rate: int, seed: int) -> list[Soundscape]:
    """SOUNDSCAPES of SOUNDSCAPE_S of the clips of `data` over the part `test` of the quiet folders, or over noise without them."""
    beds = decode(background_files(quiet, "test"), rate) if quiet else None
    made_of = bank(data, range(len(data.clips)), decode(data.paths, rate), beds, rate)
    return [soundscape(made_of, int(SOUNDSCAPE_S * rate), [seed, number]) for number in range(SOUNDSCAPES)]


def synthetic_sounds(rate: int, seconds: float, seed: int) -> Iterator[tuple[str, list[Callable[[], Floats]]]]:
    """Sound that holds nothing, by name, at several levels (RMS in dBFS): nothing itself, white and pink noise, mains hum."""
    samples = int(rate * seconds)
    draw = np.random.default_rng(seed)

    def at(levels: Sequence[float], sound: Floats) -> list[Callable[[], Floats]]:
        loudness = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
        return [partial(_scaled, sound, 10 ** (level / 20) / loudness) for level in levels]

    def hum(mains_hz: float) -> Floats:
        phase = 2 * np.pi * mains_hz * np.arange(samples) / rate
        return np.asarray(sum(np.sin(number * phase) / number for number in range(1, 6)), np.float32)

    yield "digital silence", [partial(_scaled, np.zeros(samples, np.float32), 1.0)]
    white = draw.standard_normal(samples, np.float32)
    yield "white noise", at((-20, -40), white)
    yield "noise at -60 dBFS", at((-60,), white)
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    yield "pink noise", at((-20, -40, -60), np.fft.irfft(spectrum, samples).astype(np.float32))
    yield "mains hum", [*at((-20, -40), hum(50.0)), *at((-20, -40), hum(60.0))]


def _scaled(sound: Floats, gain: float) -> Floats:
    return np.asarray(np.clip(sound * np.float32(gain), -1, 1), np.float32)
