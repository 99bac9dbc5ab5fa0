"""One training run: from a recipe and a folder of clips to a folder with the network, its ONNX file and its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from detector.audio.source import Floats
from detector.errors import InputError
from detector.model import Model
from trainer.calibration import calibrate, fold, last_linear, row_logits, row_targets
from trainer.cfg import Cfg
from trainer.checkpoint import NAME as CHECKPOINT
from trainer.checkpoint import load_checkpoint, write_packed
from trainer.crnn import CRNN
from trainer.data import FULL_SCALE, DataSet, Split
from trainer.devices import is_first_process
from trainer.evaluation import Figures, as_json, clip_scores, figures_of, text
from trainer.exporter import export
from trainer.files import write_whole
from trainer.recipe import Recipe, as_tables
from trainer.streams import bank
from trainer.thresholds import DEFAULT, choose, validation_soundscapes
from trainer.training import Trained, train

FIGURES = "figures.json"


def run(
    cfg: Cfg,
    data: DataSet,
    recipe: Recipe,
    split: Split,
    out: Path,
    *,
    begin: Path | None = None,
    device: str,
    devices: int = 1,
    fresh: bool = False,
    skip_bad: bool = False,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, choose thresholds, write `out`/model.pt, model.onnx and figures.json, say the honest accuracy; the figures as JSON.

    A training in `out` that was interrupted goes on; with fresh, what is there is removed first. Raises what `train` does, and
    InputError for a folder that cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(str(out), f"cannot be made ({error.strerror})", "give another folder with --out") from error
    say = say if is_first_process() else lambda _: None
    if fresh:
        clear(out)
    if is_first_process():  # also finds out whether anything can be written here, before the work
        write_whole(out / "recipe.json", lambda partial: partial.write_text(json.dumps(as_tables(recipe), indent=1) + "\n"))
    if not recipe.data.background and recipe.train.loss == "stream":
        say("no --background folder: the model will not learn what none of the classes sounds like")
    trained = train(cfg, data, recipe, split, out=out, begin=begin, device=device, devices=devices, skip_bad=skip_bad, say=say)
    if not is_first_process():
        return {}
    trained, thresholds, calibration = _settled(trained, split, say)
    metrics = {"validation": as_json(trained.validation), "best_epoch": trained.best_epoch} | calibration
    if trained.test:
        metrics["test"] = as_json(trained.test)
    checkpoint = {
        "schema": 1,
        "name": recipe.name or cfg.name,
        "cfg": cfg.text,
        "labels": trained.labels,
        "weights": trained.model.state_dict(),
        "training": trained.training,
        "metrics": metrics,
        "thresholds": thresholds,
    }
    write_packed(out / "model.pt", checkpoint)
    if cfg.obstacles:
        say(f"not exported: {cfg.obstacles[0]}")
    else:
        export_file(out / "model.pt", out / "model.onnx")
        say(f"wrote {out / 'model.onnx'}")
    figures = {"cfg": cfg.text, "clips": len(data.clips), "training": trained.training, "metrics": metrics}
    write_whole(out / FIGURES, lambda partial: partial.write_text(json.dumps(figures, indent=1) + "\n"))
    alone = "" if trained.test else " (it chose the epoch: no test)"
    say(f"validation accuracy {trained.validation.accuracy:.1%} on {split.validation_name}, epoch {trained.best_epoch}{alone}")
    if trained.test:
        say(text(trained.test))
        honest = "" if split.protocol == "honest" else f" ({split.protocol}: this is no honest test)"
        say(f"test accuracy {trained.test.accuracy:.1%} on {split.test_name}, {trained.test.clips} clips{honest}")
    return figures


def clear(out: Path) -> None:
    """Remove what an earlier training left in `out`. Only the first process does."""
    if is_first_process():
        for name in (CHECKPOINT, FIGURES, "model.pt", "model.onnx"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)


def finished(out: Path, cfg: Cfg, data: DataSet, recipe: Recipe, split: Split) -> dict[str, Any] | None:
    """The figures of a run that is done in `out`; None where there is none, or one of another cfg, data set, recipe or folds."""
    try:
        figures: dict[str, Any] = json.loads((out / FIGURES).read_text())
        theirs = (figures["cfg"], figures["clips"], figures["training"]["recipe"], figures["training"]["folds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return figures if theirs == (cfg.text, len(data.clips), as_tables(recipe), split.as_json()) else None


def _settled(
    trained: Trained, split: Split, say: Callable[[str], None]
) -> tuple[Trained, dict[str, dict[str, float]], dict[str, Any]]:
    """On the CPU, calibrated, with its figures as it is then; its thresholds; what calibration did, for its metrics.

    Both are chosen on soundscapes of the validation clips and on the backgrounds held out for it, where the network streams.
    """
    model, sounds, cfg = trained.model.cpu().eval(), trained.sounds, trained.model.cfg
    if cfg.obstacles or sounds.quiet is None:
        return trained, dict.fromkeys(trained.labels, DEFAULT), {}
    hop, rate = cfg.hop, cfg.frontend.sample_rate
    of_fold = trained.data.of_folds(split.validation)
    streams = validation_soundscapes(bank(trained.data, of_fold, sounds.clips, sounds.quiet, rate))
    logits = [row_logits(model, stream.audio) for stream in streams]
    metrics: dict[str, Any] = {}
    if not (layer := last_linear(model)):
        say("not calibrated: the last layer is no [linear] with a bias")
    else:
        found = calibrate(logits, [row_targets(stream, len(rows), hop) for stream, rows in zip(streams, logits, strict=True)])
        fold(found, layer)
        say(found.said)
        logits = [found.scale * rows + found.offset for rows in logits]
        metrics["calibration"] = {name: round(value, 4) for name, value in asdict(found).items()}
        test = _figures(trained, split.test) if trained.test else None
        trained = replace(trained, validation=_figures(trained, split.validation), test=test)
    beds = [np.asarray(sounds.quiet[index] / FULL_SCALE, np.float32) for index in range(len(sounds.quiet))]
    quiet = [_scores(row_logits(model, bed)) for bed in beds]
    heard = [(_scores(rows), stream.events) for stream, rows in zip(streams, logits, strict=True)]
    chosen = choose(trained.labels, hop, rate, quiet, heard)
    say(chosen.said)
    facts = trained.training | {"false_events_per_hour": chosen.target}
    thresholds = {label: threshold.of_model() for label, threshold in chosen.thresholds.items()}
    return replace(trained, training=facts), thresholds, metrics


def _scores(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), np.float32)


def _figures(trained: Trained, folds: Sequence[int]) -> Figures:
    """What the network is worth on the clips of these folds."""
    indexes = trained.data.of_folds(folds)
    clips = [trained.data.clips[index] for index in indexes]
    logits = clip_scores(trained.model, [trained.sounds.clips[index] for index in indexes])
    return figures_of(logits, np.array([clip.target for clip in clips]), trained.labels, [clip.recording for clip in clips])


def export_file(checkpoint_file: Path, out: Path) -> None:
    """Write the ONNX file of a checkpoint. Raises CfgError when the network needs whole clips."""
    model, checkpoint = load_checkpoint(checkpoint_file)
    checkpoint["training"] = _without_folders(checkpoint["training"])
    export(model, out, **{key: checkpoint[key] for key in ("name", "labels", "thresholds", "training", "metrics")})


def _without_folders(training: dict[str, Any]) -> dict[str, Any]:
    """How a network was trained, its data named and not located: where they lie on one computer is nobody else's business."""
    recipe = training.get("recipe", {})
    data = dict(recipe.get("data", {}))
    data |= {key: Path(data[key]).name for key in ("path", "recordings") if data.get(key)}
    data |= {"background": [Path(folder).name for folder in data.get("background", ())]}
    return training | {"recipe": recipe | {"data": data}} if recipe else training


def load_model(path: Path) -> tuple[CRNN | Model, tuple[str, ...], dict[str, Any]]:
    """A network from its model.pt or .onnx, its labels, and how it was trained. Raises ModelError for anything else."""
    if not path.is_file():
        raise InputError(str(path), "no such file", "is the name of the model right?")
    if path.suffix == ".onnx":
        model = Model(path, "cpu")
        return model, model.description.labels, dict(model.description.properties.get("training") or {})
    network, checkpoint = load_checkpoint(path)
    return network, tuple(checkpoint["labels"]), checkpoint["training"]


def channels_of(training: Mapping[str, Any]) -> str:
    """How a network wants a file's channels: what the recipe it was trained by says."""
    return str(training.get("recipe", {}).get("data", {}).get("channels", "avg"))
