"""One training run: from a recipe and a folder of clips to a folder with the network, its ONNX file and its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from detector.errors import CfgError, InputError, ModelError
from detector.model import Model
from trainer.cfg import Cfg, parse_cfg
from trainer.checkpoint import NAME as CHECKPOINT
from trainer.checkpoint import write_packed
from trainer.crnn import CRNN
from trainer.data import DataSet, Split
from trainer.devices import is_first_process
from trainer.evaluation import as_json, text
from trainer.exporter import export
from trainer.files import write_whole
from trainer.recipe import Recipe, as_tables
from trainer.thresholds import DEFAULT, choose_thresholds
from trainer.training import Trained, train

FIGURES = "figures.json"


def run(
    cfg: Cfg,
    data: DataSet,
    recipe: Recipe,
    split: Split,
    out: Path,
    *,
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
    trained = train(cfg, data, recipe, split, out=out, device=device, devices=devices, skip_bad=skip_bad, say=say)
    if not is_first_process():
        return {}
    metrics = {"validation": as_json(trained.validation), "best_epoch": trained.best_epoch}
    if trained.test:
        metrics["test"] = as_json(trained.test)
    checkpoint = {
        "schema": 1,
        "name": recipe.name or cfg.name,
        "cfg": cfg.text,
        "labels": trained.labels,
        "weights": trained.model.cpu().state_dict(),
        "training": trained.training,
        "metrics": metrics,
        "thresholds": _thresholds(trained, split, say),
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


def _thresholds(trained: Trained, split: Split, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Thresholds chosen on the held-out half of the backgrounds and the validation clips, where the network streams."""
    cfg, sounds, clips = trained.model.cfg, trained.sounds, trained.data.clips
    if cfg.obstacles or sounds.quiet is None:
        return dict.fromkeys(trained.labels, DEFAULT)
    lengths_s: list[list[float]] = [[] for _ in trained.labels]
    for index in trained.data.of_folds([*split.train, *split.validation]):
        lengths_s[clips[index].target].append(len(sounds.clips[index]) / cfg.frontend.sample_rate)
    chosen, said = choose_thresholds(
        trained.model,
        trained.labels,
        [sounds.quiet[index] for index in range(len(sounds.quiet))],
        [(sounds.clips[index], clips[index].target) for index in trained.data.of_folds(split.validation)],
        lengths_s,
    )
    say(said)
    return chosen


def export_file(checkpoint_file: Path, out: Path) -> None:
    """Write the ONNX file of a checkpoint. Raises CfgError when the network needs whole clips."""
    model, checkpoint = load_checkpoint(checkpoint_file)
    export(model, out, **{key: checkpoint[key] for key in ("name", "labels", "thresholds", "training", "metrics")})


def load_model(path: Path) -> tuple[CRNN | Model, tuple[str, ...], dict[str, Any]]:
    """A network from its model.pt or .onnx, its labels, and how it was trained. Raises ModelError for anything else."""
    if not path.is_file():
        raise InputError(str(path), "no such file")
    if path.suffix == ".onnx":
        model = Model(path, "cpu")
        return model, model.description.labels, dict(model.description.properties.get("training") or {})
    network, checkpoint = load_checkpoint(path)
    return network, tuple(checkpoint["labels"]), checkpoint["training"]


def channels_of(training: Mapping[str, Any]) -> str:
    """How a network wants a file's channels: what the recipe it was trained by says."""
    return str(training.get("recipe", {}).get("data", {}).get("channels", "avg"))


def load_checkpoint(path: Path) -> tuple[CRNN, dict[str, Any]]:
    """A trained network and what was written with it. Raises ModelError for anything else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = CRNN(parse_cfg(checkpoint["cfg"], f"{path}:cfg"))
        model.load_state_dict(checkpoint["weights"])
    except CfgError:
        raise
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file") from error
    except Exception as error:
        raise ModelError(
            str(path), "is not a checkpoint of urbandetect", "give the model.pt that `urbandetect train` wrote"
        ) from error
    return model.eval(), checkpoint
