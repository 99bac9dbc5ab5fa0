"""One training run: from a folder of clips to a folder with the network, its ONNX file and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.errors import CfgError, ConfigError, InputError, ModelError
from detector.health import own_version
from detector.model import Model
from trainer.cfg import load_cfg, parse_cfg
from trainer.crnn import CRNN, pool
from trainer.data import background_files, decode, load_dataset, read_mono
from trainer.evaluate import Figures, as_json, clip_scores, figures_of
from trainer.export import export, write_whole
from trainer.thresholds import DEFAULT, choose_thresholds
from trainer.train import Recipe, train


def run(
    cfg_file: Path,
    data_folder: Path,
    *,
    test_fold: int | None,
    validation_fold: int | None,
    background_folders: tuple[Path, ...],
    out: Path,
    device: str,
    say: Callable[[str], None],
    **changes: Any,
) -> None:
    """Train, choose thresholds, write `out`/model.pt, model.onnx and figures.json, print the honest accuracy."""
    cfg = load_cfg(cfg_file)
    data = load_dataset(data_folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(str(out), f"cannot be made ({error.strerror})", "give another folder with --out") from error
    if not background_folders and not cfg.obstacles:
        say("no --background folder: the model will not learn what none of the classes sounds like")
    quiet_files = background_files(background_folders, held_out=True) if background_folders else []
    trained = train(
        cfg,
        data,
        replace(Recipe(), **changes),
        test_fold=test_fold,
        validation_fold=validation_fold,
        background_folders=background_folders,
        device=pick_device(device),
        say=say,
    )
    metrics = {"validation": as_json(trained.validation), "best_epoch": trained.best_epoch}
    if trained.test:
        metrics["test"] = as_json(trained.test)
    name = cfg_file.stem
    checkpoint = {
        "schema": 1,
        "name": name,
        "cfg": cfg.text,
        "labels": trained.labels,
        "weights": trained.model.state_dict(),
        "training": trained.training,
        "metrics": metrics,
        "thresholds": dict.fromkeys(trained.labels, DEFAULT),
    }
    write_whole(out / "model.pt", lambda partial: torch.save(checkpoint, partial))
    if not cfg.obstacles and quiet_files:
        rate = cfg.frontend.sample_rate
        quiet = decode(quiet_files, rate)
        clips = decode([clip.path for clip in data.clips], rate)
        known = [(clips[i], clip.target, clip.fold) for i, clip in enumerate(data.clips) if clip.fold != test_fold]
        checkpoint["thresholds"], said = choose_thresholds(
            trained.model.cpu(),
            trained.labels,
            [quiet[index] for index in range(len(quiet))],
            [(audio, target) for audio, target, fold in known if fold == trained.training["folds"]["validation"]],
            [[len(audio) / rate for audio, target, _ in known if target == index] for index in range(len(data.labels))],
        )
        say(said)
    write_whole(out / "model.pt", lambda partial: torch.save(checkpoint, partial))
    text = json.dumps({"training": trained.training, "metrics": metrics}, indent=1)
    write_whole(out / "figures.json", lambda partial: partial.write_text(text + "\n"))
    if cfg.obstacles:
        say(f"not exported: {cfg.obstacles[0]}")
    else:
        export_file(out / "model.pt", out / "model.onnx")
        say(f"wrote {out / 'model.onnx'}")
    folds = trained.training["folds"]
    say(f"validation accuracy {trained.validation.accuracy:.1%} on fold {folds['validation']}, epoch {trained.best_epoch}")
    if trained.test:
        say(report(trained.test, False))
        say(f"test accuracy {trained.test.accuracy:.1%} on fold {test_fold}, {trained.test.clips} clips")


def export_file(checkpoint_file: Path, out: Path) -> None:
    """Write the ONNX file of a checkpoint. Raises CfgError when the network needs whole clips."""
    model, checkpoint = load_checkpoint(checkpoint_file)
    export(
        model,
        out,
        name=checkpoint["name"],
        version=own_version(),
        labels=checkpoint["labels"],
        thresholds=checkpoint["thresholds"],
        training=checkpoint["training"],
        metrics=checkpoint["metrics"],
    )


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


def evaluate_file(path: Path, data_folder: Path, fold: int) -> tuple[Figures, bool]:
    """Figures of an .onnx or model.pt on one fold, and whether that fold had a part in its training."""
    data = load_dataset(data_folder)
    chosen = data.of_folds([fold])
    if not chosen:
        raise InputError(str(data_folder), f"fold {fold} has no clips", f"folds here: {', '.join(map(str, data.folds))}")
    paths = [data.clips[index].path for index in chosen]
    targets = np.array([data.clips[index].target for index in chosen])
    if path.suffix == ".onnx":
        model = Model(path, "cpu")
        labels, training = model.description.labels, model.description.properties["training"]
        logits = np.stack([onnx_clip_logits(model, read_mono(clip, model.description.sample_rate)) for clip in paths])
    else:
        network, checkpoint = load_checkpoint(path)
        labels, training = tuple(checkpoint["labels"]), checkpoint["training"]
        decoded = decode(paths, network.cfg.frontend.sample_rate)
        logits = clip_scores(network, [decoded[index] for index in range(len(paths))])
    if labels != data.labels:
        raise InputError(str(path), f"knows {', '.join(labels)}", f"the data set has {', '.join(data.labels)}")
    folds = training.get("folds", {})
    return figures_of(logits, targets, labels), fold in [*folds.get("train", []), folds.get("validation")]


def onnx_clip_logits(model: Model, audio: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A clip's pooled logits, [labels], from the model file alone: zeros before it, its last hop filled up."""
    d = model.description
    rows = max(1, -(-len(audio) // d.hop))
    window = np.zeros((1, d.context + rows * d.hop), np.float32)
    window[0, d.context : d.context + len(audio)] = audio
    scores, _ = model.step(window, model.fresh_state(1))
    logits = torch.logit(torch.from_numpy(scores), eps=1e-7)
    return np.asarray(pool(logits, torch.tensor([rows]), d.clip_pooling)[0].numpy(), np.float32)


def report(figures: Figures, for_programs: bool) -> str:
    """Accuracy and recall per label, as a table or as JSON."""
    if for_programs:
        return json.dumps(as_json(figures) | {"loss": round(figures.loss, 4), "confusion": figures.confusion.tolist()})
    lines = [f"{label:<17} recall {recall:6.1%}" for label, recall in figures.recall.items()]
    return "\n".join([*lines, f"accuracy {figures.accuracy:.1%} over {figures.clips} clips"])


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one. Raises ConfigError for a device torch cannot use."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}", "torch cannot use it", "cpu always works") from error
    return name
