"""The trainer's commands. Torch is imported when one of them runs, not before."""

from __future__ import annotations

from pathlib import Path

import click

from detector.errors import ConfigError, InputError

_data = click.option(
    "--data", type=click.Path(path_type=Path), default=Path("UrbanSound8K"), show_default=True, help="The UrbanSound8K folder."
)


@click.command()
@click.option("--fold", required=True, metavar="1..10|none", help="The fold to test on; `none` trains a model to ship.")
@_data
@click.option("--cfg", "cfg_file", type=click.Path(path_type=Path), help="The architecture; else urban.cfg.")
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of sounds that are none of the classes; repeatable.",
)
@click.option("--val-fold", type=int, help="The fold that chooses the epoch; else the smallest other one with every class.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; else runs/CFG-foldN.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many.")
@click.option("--lr", type=click.FloatRange(0, 1, min_open=True), help="The highest learning rate.")
@click.option("--seed", type=int, help="For everything random.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def train(
    fold: str,
    data: Path,
    cfg_file: Path | None,
    background: tuple[Path, ...],
    val_fold: int | None,
    out: Path | None,
    epochs: int | None,
    lr: float | None,
    seed: int | None,
    device: str,
) -> None:
    """Train on UrbanSound8K, test honestly, write the model.

    The epoch is chosen on a validation fold, the accuracy printed is that of the test fold, which nothing else has seen.
    """
    from detector.model import shipped

    _need_torch()
    from trainer.run import run as run_training

    if fold != "none" and not (fold.isdigit() and 1 <= int(fold) <= 10):
        raise InputError("--fold", f"{fold!r} is not a fold", "give 1 to 10, or none to hold no fold out")
    path = cfg_file or shipped("urban.cfg")
    changes = {key: value for key, value in {"epochs": epochs, "learning_rate": lr, "seed": seed}.items() if value is not None}
    run_training(
        path,
        data,
        test_fold=None if fold == "none" else int(fold),
        validation_fold=val_fold,
        background_folders=background,
        out=out or Path("runs") / f"{path.stem}-{'none' if fold == 'none' else 'fold' + fold}",
        device=device,
        say=click.echo,
        **changes,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data
@click.option("--fold", type=click.IntRange(1, 10), required=True, help="The fold to test on: one the model has not seen.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def evaluate(file: Path, data: Path, fold: int, as_json: bool) -> None:
    """Accuracy of a model (.onnx or model.pt) on the clips of one fold."""
    _need_torch()
    from trainer.run import evaluate_file, report

    figures, seen = evaluate_file(file, data, fold)
    if seen:
        click.echo(f"warning: {file} was trained or chosen on fold {fold}: this is no honest test", err=True)
    click.echo(report(figures, as_json))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def export(checkpoint: Path, out: Path) -> None:
    """Write the ONNX file of a trained network (model.pt)."""
    _need_torch()
    from trainer.run import export_file

    export_file(checkpoint, out)


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchaudio") is None:
        raise ConfigError(
            "training", "needs torch and torchaudio", "install them, in urbandetect's folder: pip install -e '.[train]'"
        )
