"""Other thresholds: from what a microphone heard, from recordings in which nothing is to be heard, and from soundscapes in which
everything is known. Needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from detector.archive import recordings
from detector.audio.file import FileSource
from detector.audio.resample import Resampler
from detector.audio.source import Floats
from detector.errors import InputError
from detector.model import PROPERTY, Model, Threshold
from trainer.data import DataSet, background_files, decode
from trainer.files import write_whole
from trainer.hearing import scores_of
from trainer.streams import bank
from trainer.thresholds import Stream, validation_soundscapes

LONGEST_BED_S = 600.0
"""Longer recordings do not lie under soundscapes: of these a minute would be used, and all of it be read."""


def quiet_files(given: Sequence[Path], training: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """The audio files given and those in the folders given; and the folders of which only a part counts.

    A folder that is named like one of the backgrounds the model was trained with, or lies in such a one, counts with its part for
    choosing thresholds, which training leaves out. Raises InputError for what is not there, may not be read or holds no audio.
    """
    own = {Path(folder).name for folder in training.get("recipe", {}).get("data", {}).get("background", [])}
    files: list[Path] = []
    partly: list[Path] = []
    for path in given:
        found, _ = recordings([str(path)])
        for each in found:
            if each.size < 0:
                _say_why(each.name)
        folder, here = path if path.is_dir() else path.parent, [Path(each.name) for each in found]
        if own & set(folder.resolve().parts):
            for_choosing = set(background_files([folder], "choose"))
            here = [each for each in here if each in for_choosing]
            partly += [folder] if folder not in partly else []
        files += [each for each in here if each not in files]
    if not files:
        raise InputError(
            ", ".join(map(str, given[:3])), "are all of the part the model was trained with", "give sound it has not heard"
        )
    return files, partly


def _say_why(name: str) -> None:
    """Raise InputError for what `recordings` could not look at."""
    try:
        os.scandir(name).close()
    except OSError as error:
        raise InputError(name, f"cannot be read ({error.strerror})", "are its name and the permissions right?") from error


def scores_of_file(model: Model, path: Path) -> Floats:
    """Scores of a file of any length heard as one fresh stream, [rows, labels], at least one row; read piece by piece.

    Raises InputError for a file that cannot be read or holds no sample.
    """
    d = model.description
    source = FileSource(path)
    resampler = Resampler(source.rate, d.sample_rate)
    heard, state, scores = np.zeros(d.context, np.float32), model.fresh_state(1), []
    while not source.ended:
        block = source.read()
        piece = resampler.push(block.samples if block else np.zeros(0, np.float32), last=block is None)
        heard = np.concatenate([heard, piece])
        missing = -(len(heard) - d.context) % d.hop if source.ended else 0
        heard = np.concatenate([heard, np.zeros(missing, np.float32)])
        rows = (len(heard) - d.context) // d.hop
        if rows > 0:
            new, state = model.step(heard[None, : d.context + rows * d.hop], state)
            scores.append(new[0])
            heard = heard[rows * d.hop :]
    source.close()
    if not scores:
        raise InputError(str(path), "holds no sample", "is it an unfinished recording?")
    return np.concatenate(scores)


def streams_of(model: Model, data: DataSet, folds: Sequence[int], quiet: Sequence[Path]) -> list[Stream]:
    """Scores and events of soundscapes: clips of these folds over the shorter ones of the quiet files."""
    rate = model.description.sample_rate
    beds = [path for path in quiet if soundfile.info(str(path)).duration <= LONGEST_BED_S]
    made_of = bank(data, data.of_folds(folds), decode(data.paths, rate), decode(beds, rate) if beds else None, rate)
    return [(scores_of(model, made.audio), made.events) for made in validation_soundscapes(made_of)]


def write_thresholds(file: Path, out: Path, thresholds: Mapping[str, Threshold], target: float, false: bool = True) -> None:
    """The model of `file` with these thresholds, and the rate they are for, in its description; the graph is the same.

    false: the rate is of false events, else of all that are told.
    """
    import onnx

    proto = onnx.load_model_from_string(file.read_bytes())
    entry = next(entry for entry in proto.metadata_props if entry.key == PROPERTY)
    description = json.loads(entry.value)
    description["thresholds"] = {label: threshold.of_model() for label, threshold in thresholds.items()}
    description["training"]["false_events_per_hour" if false else "told_events_per_hour"] = target
    entry.value = json.dumps(description, sort_keys=True)
    write_whole(out, lambda partial: partial.write_bytes(proto.SerializeToString()))
