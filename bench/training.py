"""What augmentation costs: the time of an epoch of urban.cfg with its recipe's augmentation against the same epoch without any.

    python bench/training.py --data UrbanSound8K --background background [--rounds 3] [--device cuda]

Epochs of both kinds take turns; the medians and their ratio are printed. All clips at hand are trained on; nothing is kept.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import torch

from trainer import load_cfg, load_dataset, load_recipe, train
from trainer.data import Split
from trainer.draw import Augmentation


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--background", type=click.Path(path_type=Path), multiple=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(data: Path, background: tuple[Path, ...], rounds: int, device: str) -> None:
    cfg, clips, recipe = load_cfg("models/urban.cfg"), load_dataset(data), load_recipe("models/urban.toml")
    recipe = replace(
        recipe,
        data=replace(recipe.data, background=tuple(map(str, background))),
        train=replace(recipe.train, epochs=1, tensorboard=False),
    )
    kinds = {"augmented": recipe, "not augmented": replace(recipe, augment=Augmentation())}
    split = Split(tuple(clips.folds), (clips.validation_fold(None),), ())
    times_s: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            trained = train(cfg, clips, kind, split, device=device, say=lambda line: click.echo(f"  {line}", err=True))
            times_s[name].append(trained.training["seconds"])
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    print(f"{len(clips.clips)} clips, {cfg.parameters:,} parameters, {rounds} rounds")
    for name, seconds in times_s.items():
        print(f"epoch {name:<14} {median(seconds):6.1f} s   ({min(seconds):.1f} to {max(seconds):.1f})")
    print(f"ratio               {median(times_s['augmented']) / median(times_s['not augmented']):6.2f}")


if __name__ == "__main__":
    main()
