"""The sound that training reads, and the order it is read in: which clips a step learns from depends on the seed and its number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from detector.errors import InputError
from trainer.cfg import Cfg
from trainer.data import DataSet, Decoded, background_files, decode
from trainer.hear import Batch, Sounds, prepare
from trainer.recipe import Recipe


def load_sounds(cfg: Cfg, data: DataSet, recipe: Recipe, skip_bad: bool, say: Callable[[str], None]) -> tuple[DataSet, Sounds]:
    """Decode everything, and the data set without what could not be; with skip_bad that is said, else an error."""
    folders = [Path(folder) for folder in recipe.data.background]
    how: dict[str, Any] = {"channels": recipe.data.channels, "workers": recipe.data.workers}
    bad: list[str] = []

    def skip(error: InputError) -> None:
        bad.append(error.where)
        say(f"skipped {error}")

    def good(paths: list[Path]) -> Decoded:
        decoded = decode(paths, cfg.frontend.sample_rate, bad=skip if skip_bad else None, **how)
        left = [path for path in paths if str(path) not in bad]
        return decoded if len(left) == len(paths) else decode(left, cfg.frontend.sample_rate, **how)

    clips = good(data.paths)
    data = data.without(bad)
    beds, quiet = (good(background_files(folders, half)) if folders else None for half in (False, True))
    return data, Sounds(clips, torch.tensor([clip.target for clip in data.clips]), beds, quiet)


def clips_a_batch(rows: int, recipe: Recipe, sounds: Sounds) -> int:
    """How many of a batch's rows hold a clip; the others hold a background."""
    share = recipe.stream.backgrounds if recipe.train.loss == "stream" and sounds.beds else 0.0
    return max(1, round(rows * (1 - share)))


def batches(clips: list[int], size: int, recipe: Recipe, fabric: Fabric, epoch: int) -> list[Tensor]:
    """The clips of each of an epoch's batches, this process's part."""
    order = torch.tensor(clips)
    if recipe.batch.shuffle:
        generator = torch.Generator().manual_seed(_mixed(recipe.train.seed, epoch))
        order = order[torch.randperm(len(order), generator=generator)]
    whole = size * fabric.world_size
    batches = list(torch.split(order, whole))
    if len(batches) > 1 and len(batches[-1]) < (whole if recipe.batch.drop_last else 2 * fabric.world_size):
        batches.pop()
    return [batch[fabric.global_rank :: fabric.world_size] for batch in batches]


def ahead(cfg: Cfg, recipe: Recipe, sounds: Sounds, order: list[Tensor], rows: int, step: int, fabric: Fabric) -> Iterator[Batch]:
    """Batches, the next one prepared while the last one is learnt from; a bar on a terminal."""

    def make(number: int) -> Batch:
        generator = torch.Generator().manual_seed(seed(recipe, step + number, fabric, 0))
        clips = order[number]
        batch = prepare(cfg, recipe, sounds, clips, rows if recipe.train.loss == "stream" else len(clips), generator)
        return batch.pinned() if fabric.device.type == "cuda" else batch

    quiet = recipe.train.verbosity < 2 or not fabric.is_global_zero or not sys.stderr.isatty()
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(make, 0)
        for number in tqdm(range(len(order)), leave=False, disable=quiet, unit="batch"):
            batch = coming.result()
            if number + 1 < len(order):
                coming = loader.submit(make, number + 1)
            yield batch


def seed(recipe: Recipe, step: int, fabric: Fabric, what: int) -> int:
    """A seed for one step of one process: what 0 draws the batch, 1 the dropout."""
    return _mixed(recipe.train.seed, step, fabric.global_rank, what)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
