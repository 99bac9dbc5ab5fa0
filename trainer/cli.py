"""The commands that train, evaluate and export. Torch is imported when one of them runs, not before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from detector.errors import ConfigError, InputError, install

_data = click.option("--data", type=click.Path(path_type=Path), help="The UrbanSound8K folder; else the recipe's.")


@click.command()
@click.option(
    "--fold",
    metavar="1..10|all|none",
    type=click.Choice([*map(str, range(1, 11)), "all", "none"]),
    help="The fold to test on, or each in turn; `none` trains a model to ship.",
)
@_data
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="A .toml, or the reference's config.json; else urban.toml."
)
@click.option("--cfg", "cfg_file", type=click.Path(path_type=Path), help="The architecture; else the recipe's.")
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of sounds that are none of the classes; repeatable.",
)
@click.option(
    "--recordings", type=click.Path(path_type=Path), help="A CSV of annotated recordings; those of the training folds train."
)
@click.option("--val-fold", type=click.IntRange(1, 10), help="The fold that chooses the epoch; else the smallest with every class.")
@click.option(
    "--protocol",
    type=click.Choice(["honest", "reference"]),
    default="honest",
    show_default=True,
    help="`reference` chooses the epoch on the tested fold, to compare with figures found so.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; else runs/NAME-foldN.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many.")
@click.option("--lr", type=click.FloatRange(0, 1, min_open=True), help="The optimizer's learning rate.")
@click.option("--seed", type=click.IntRange(0), help="For everything random.")
@click.option("--from", "begin", type=click.Path(path_type=Path), help="A model.pt whose weights to begin with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="So many GPUs share each batch.")
@click.option("--ray", "address", metavar="ADDRESS", help="With --fold all: a fold on each core or GPU of this Ray cluster.")
@click.option("--fresh", is_flag=True, help="Begin anew where an earlier training would go on.")
@click.option("--skip-bad", is_flag=True, help="Leave clips out that cannot be decoded, and name them.")
def train(
    fold: str | None,
    data: Path | None,
    recipe_file: Path | None,
    cfg_file: Path | None,
    background: tuple[Path, ...],
    recordings: Path | None,
    val_fold: int | None,
    protocol: str,
    out: Path | None,
    epochs: int | None,
    lr: float | None,
    seed: int | None,
    begin: Path | None,
    device: str,
    devices: int,
    address: str | None,
    fresh: bool,
    skip_bad: bool,
) -> None:
    """Train on UrbanSound8K, test honestly, write the model.

    The epoch is chosen on a validation fold, the accuracy printed is that of the test fold, which nothing else has seen. The same
    command again goes on where it was interrupted.
    """
    from dataclasses import replace

    from detector.model import shipped

    need_torch()
    quiet_matplotlib()
    from trainer.cfg import load_cfg
    from trainer.data import Split, load_dataset, must_have, split
    from trainer.folds import run_folds
    from trainer.recipe import check, load_recipe
    from trainer.run import run as run_training

    path = recipe_file or shipped("urban.toml")
    recipe = load_recipe(path)
    if not cfg_file and not recipe.cfg:
        raise InputError(str(path), "names no cfg", "give the architecture with --cfg")
    cfg = load_cfg(cfg_file or path.parent / recipe.cfg)
    changes: dict[str, Any] = {name: value for name, value in {"epochs": epochs, "seed": seed}.items() if value is not None}
    optimizer = replace(recipe.optimizer, args=dict(recipe.optimizer.args) | ({"lr": lr} if lr else {}))
    recipe = replace(
        recipe,
        name=recipe.name if not cfg_file or recipe_file else cfg.name,
        optimizer=optimizer,
        train=replace(recipe.train, **changes),
        data=replace(
            recipe.data,
            background=tuple(map(str, background)) or recipe.data.background,
            recordings=str(recordings or recipe.data.recordings),
        ),
    )
    check(recipe, f"{path} and the command line")
    if fold is None and not (recipe.data.train and recipe.data.val):
        raise InputError("--fold", "is missing", "give 1 to 10, all, or none to hold no fold out")
    clips = load_dataset(data or Path(recipe.data.path))
    name = recipe.name or cfg.name
    suffix = "" if protocol == "honest" else "-reference-protocol"
    how: dict[str, Any] = {"device": device, "devices": devices, "skip_bad": skip_bad, "say": click.echo}
    if fold == "all":
        if val_fold or begin:
            raise InputError("--val-fold and --from", "are other ones for each of --fold all", "leave them out")
        folder = out or Path(recipe.train.save_dir) / f"{name}-all{suffix}"
        run_folds(cfg, clips, recipe, folder, protocol=protocol, fresh=fresh, ray=address or "", **how)
        return
    if address:
        raise InputError("--ray", "goes with --fold all", "leave it out")
    if fold is None:
        if val_fold or protocol != "honest":
            raise InputError("--val-fold and --protocol", f"go with --fold, and {path} names the folds here", "give --fold K")
        must_have(clips, [*recipe.data.train, *recipe.data.val, *recipe.data.test])
        parts, where = Split(recipe.data.train, recipe.data.val, recipe.data.test), "own-folds"
    else:
        parts = split(clips, None if fold == "none" else int(fold), val_fold, protocol)
        where = fold if fold == "none" else f"fold{fold}"
    folder = out or Path(recipe.train.save_dir) / f"{name}-{where}{suffix}"
    run_training(cfg, clips, recipe, parts, folder, begin=begin, fresh=fresh, **how)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data
@click.option("--fold", "folds", type=click.IntRange(1, 10), multiple=True, help="A fold to test on; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--plot",
    "plot_to",
    metavar="OUT.png",
    type=click.Path(path_type=Path),
    help="Draw the confusion matrix, or the figures of --streams.",
)
@click.option("--streams", is_flag=True, help="Events and false alarms of an .onnx on streams instead.")
@click.option(
    "--recordings", metavar="CSV", type=click.Path(path_type=Path), help="Known events: file, class, onset_s, offset_s, fold."
)
@click.option("--quiet", type=click.Path(path_type=Path), multiple=True, help="A folder of sounds without any class; repeatable.")
@click.option("--robust", is_flag=True, help="Also at other rates and levels, through a telephone, with blocks lost.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the soundscapes and all noise.")
def evaluate(
    file: Path,
    data: Path | None,
    folds: tuple[int, ...],
    as_json: bool,
    plot_to: Path | None,
    streams: bool,
    recordings: Path | None,
    quiet: tuple[Path, ...],
    robust: bool,
    seed: int,
) -> None:
    """Figures of a model (.onnx or model.pt) over all clips of these folds.

    Accuracy with its 95 % interval, precision, recall, F1, average precision, calibration, and who is taken for whom.

    With --streams what the daemon would tell, of the .onnx alone: --recordings: how many known events are found, how exactly and
    how soon; --data: F1, PSDS and calibration on soundscapes made of the clips of the folds; --quiet: false events an hour, on
    the part of it that no training sees, and always on silence, noise and hum; with these, the same model at other levels: what
    it finds for how many false events. --plot draws that and a soundscape. Without --fold all folds count.
    """
    import json

    if streams:
        _evaluate_streams(file, data, folds, as_json, plot_to, recordings, quiet, robust, seed)
        return
    if recordings or quiet or robust:
        raise InputError("--recordings, --quiet and --robust", "go with --streams", "add it")
    if not folds:
        raise click.MissingParameter(param_hint="'--fold'", param_type="option")
    need_torch()
    if plot_to:
        need_picture(plot_to)
    from trainer import evaluation
    from trainer.data import folds_in_words, load_dataset
    from trainer.run import channels_of, load_model

    model, labels, training = load_model(file)
    clips = load_dataset(data or Path("UrbanSound8K"))
    if labels != clips.labels:
        raise InputError(str(file), f"knows {', '.join(labels)}", f"the data set has {', '.join(clips.labels)}")
    figures = evaluation.evaluate(model, clips, folds, channels_of(training))
    _warn_of_seen(file, folds, training)
    click.echo(json.dumps(evaluation.as_json(figures)) if as_json else evaluation.text(figures))
    if plot_to:
        from trainer.plots import confusion, save

        title = f"{file.name} on {folds_in_words(folds)}: {figures.accuracy:.1%}"
        save(confusion(figures.confusion, figures.labels, title), plot_to)


def _evaluate_streams(
    file: Path,
    data: Path | None,
    folds: tuple[int, ...],
    as_json: bool,
    plot_to: Path | None,
    recordings: Path | None,
    quiet: tuple[Path, ...],
    robust: bool,
    seed: int,
) -> None:
    import json
    import sys

    from detector.model import Model
    from trainer import stream_report
    from trainer.data import folds_in_words, load_dataset
    from trainer.stream_evaluation import evaluate_streams

    if file.suffix == ".pt":
        raise InputError(str(file), "is no ONNX file", "write one: urbandetect export MODEL.pt MODEL.onnx")
    if robust and not (data or recordings or quiet):
        raise InputError("--robust", "has nothing to hear", "give --data, --recordings or --quiet")
    if plot_to:
        need_picture(plot_to)
        if not (data or (recordings and quiet)):
            raise InputError("--plot", "has nothing to draw", "give --data, or --recordings with --quiet")
    model = Model(file, "cpu")
    d = model.description
    clips = load_dataset(data) if data else None
    if clips and clips.labels != d.labels:
        raise InputError(str(file), f"knows {', '.join(d.labels)}", f"the data set has {', '.join(clips.labels)}")

    def say(line: str) -> None:
        if sys.stderr.isatty():
            click.echo(line, err=True)

    figures = evaluate_streams(
        model, data=clips, recordings=recordings, quiet=quiet, folds=folds, robust=robust, seed=seed, say=say
    )
    _warn_of_seen(file, figures.folds, d.properties["training"])
    _warn_of_heard(file, quiet, d.properties["training"])
    click.echo(json.dumps(stream_report.as_json(figures, d)) if as_json else stream_report.text(figures, d))
    if plot_to:
        from trainer.plots import save
        from trainer.stream_plot import streams

        title = f"{d.name} {d.version} on streams, {folds_in_words(figures.folds)}"
        save(streams(figures.levels, figures.example, d, title), plot_to)


def _warn_of_seen(file: Path, folds: Iterable[int], training: Mapping[str, Any]) -> None:
    """Say on standard error which of these folds the model was trained or chosen on."""
    known = training.get("folds", {})
    seen = sorted({*folds} & {*_folds(known.get("train")), *_folds(known.get("validation"))})
    if seen:
        told = ", ".join(map(str, seen))
        click.echo(f"warning: {file} was trained or chosen on fold {told}: this is no honest test", err=True)


def _warn_of_heard(file: Path, quiet: Iterable[Path], training: Mapping[str, Any]) -> None:
    """Say on standard error which of these folders a model to ship was trained on."""
    names = {Path(folder).name for folder in training.get("recipe", {}).get("data", {}).get("background", ())}
    heard = [str(folder) for folder in quiet if folder.name in names and training.get("background_part") == "ship"]
    if heard:
        click.echo(f"warning: {file} was trained on {' and '.join(heard)}: its false events there are no honest test", err=True)


def _folds(folds: Any) -> list[int]:
    """Folds as a model's metadata has them: a list, one number, or nothing."""
    return [folds] if isinstance(folds, int) else list(folds or ())


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def export(checkpoint: Path, out: Path) -> None:
    """Write the ONNX file of a trained network (model.pt)."""
    need_torch()
    from trainer.run import export_file

    export_file(checkpoint, out)


def need_matplotlib(where: Path) -> None:
    """Raise ConfigError where matplotlib is not installed."""
    from importlib.util import find_spec

    quiet_matplotlib()
    if find_spec("matplotlib") is None:
        raise ConfigError(f"--plot {where}", "needs matplotlib", install("train"))


def quiet_matplotlib() -> None:
    """Keep it from telling of its fonts when it runs for the first time."""
    import logging

    logging.getLogger("matplotlib").setLevel(logging.WARNING)


def need_picture(path: Path, *also: str) -> None:
    """Raise ConfigError where matplotlib is not installed, InputError for a name that is no picture's.

    also: suffixes that may stand there beside a picture's.
    """
    need_matplotlib(path)
    from trainer.plots import must_be_picture

    must_be_picture(path, *also)


def need_torch() -> None:
    """Raise ConfigError where a part of the extra `train` is not installed."""
    from importlib.util import find_spec

    missing = [
        name for name in ("torch", "torchaudio", "lightning_fabric", "onnx", "tensorboard", "tqdm") if find_spec(name) is None
    ]
    if missing:
        raise ConfigError("this command", f"needs {', '.join(missing)}", install("train"))
