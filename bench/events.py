"""Events of a model on recordings with known events, and false events on sound that has none.

    .venv/bin/python bench/events.py MODEL.onnx --recordings recordings.csv --folds 1,2 --quiet background --quiet ambience

recordings.csv has the columns file (beside the CSV), class, onset_s, offset_s, fold. An annotated event counts as found when an
event of its label overlaps it. Of the --quiet folders only the half that no training sees is heard.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import click
import soundfile

from detector.model import Model
from detector.scan import scan
from trainer.data import background_files


@click.command()
@click.argument("model_file", type=click.Path(path_type=Path))
@click.option("--recordings", type=click.Path(path_type=Path))
@click.option("--folds", default="", help="Only recordings of these folds, for example 1,2.")
@click.option("--quiet", type=click.Path(path_type=Path), multiple=True)
def main(model_file: Path, recordings: Path | None, folds: str, quiet: tuple[Path, ...]) -> None:
    model = Model(model_file, "cpu")
    print(json.dumps({"model": str(model_file), "sha256": model.description.sha256[:12]}))
    if recordings:
        _events(model, recordings, {int(fold) for fold in folds.split(",") if fold})
    for folder in quiet:
        _quiet(model, folder)


def _events(model: Model, table: Path, folds: set[int]) -> None:
    truth = defaultdict(list)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if not folds or int(row["fold"]) in folds:
                truth[row["file"]].append((row["class"], float(row["onset_s"]), float(row["offset_s"])))
    found, total, files, others = Counter[str](), Counter[str](), 0, 0
    for name, events in sorted(truth.items()):
        heard = list(scan(table.parent / name, model))
        hits = [
            any(h.label == label and h.onset_s < offset_s and h.offset_s > onset_s for h in heard)
            for label, onset_s, offset_s in events
        ]
        for (label, _, _), hit in zip(events, hits, strict=True):
            found[label] += hit
            total[label] += 1
        files += any(hits)
        others += sum(h.label != events[0][0] for h in heard)
    print(f"recordings with their label found  {files} of {len(truth)}")
    print(f"annotated events found             {found.total()} of {total.total()}")
    print(f"events of other labels             {others} (the recordings are not annotated for them)")
    for label in sorted(total):
        print(f"  {label:<17} {found[label]:4d} of {total[label]:4d}")


def _quiet(model: Model, folder: Path) -> None:
    alarms: Counter[str] = Counter()
    files = background_files([folder], held_out=True)
    hours = sum(soundfile.info(path).duration for path in files) / 3600
    for path in files:
        alarms.update(found.label for found in scan(path, model))
    print(f"false events in {folder.name:<18} {alarms.total()} in {hours:.2f} h, {alarms.total() / hours:.1f} an hour")
    for label, count in alarms.most_common():
        print(f"  {label:<17} {count:4d}")


if __name__ == "__main__":
    main()
