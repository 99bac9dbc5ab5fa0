"""The sound that training reads, and the order it is read in: which clips a step learns from depends on the seed and its number."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from detector.errors import InputError
from trainer.cfg import Cfg
from trainer.data import FULL_SCALE, DataSet, Decoded, background_files, decode
from trainer.hear import Batch, Passage, Sounds, frames_of, prepare
from trainer.recipe import Recipe
from trainer.recorded import Annotated, recorded
from trainer.streams import BLOCK, Bank, Soundscape, soundscape

ORDER, DRAW, DROPOUT, STREET = range(4)
"""What a seed is for."""

LENGTH_S = (20.0, 60.0)
"""Of a soundscape that a row hears: so long, or a little longer."""


def load_sounds(
    cfg: Cfg, data: DataSet, recipe: Recipe, part: str, skip_bad: bool, say: Callable[[str], None]
) -> tuple[DataSet, Sounds]:
    """Decode everything, and the data set without what could not be; with skip_bad that is said, else an error.

    part: of the backgrounds, the one of trainer.data.PARTS to train on.
    """
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
    files = background_files(folders, part) if folders else []
    beds, quiet = (good(paths) if folders else None for paths in (files, background_files(folders, "choose") if folders else []))
    return data, Sounds(clips, torch.tensor([clip.target for clip in data.clips]), beds, quiet)


def clips_a_batch(rows: int, recipe: Recipe) -> int:
    """How many of a batch's rows hold a clip; the others hear soundscapes."""
    share = recipe.stream.soundscapes if recipe.train.loss == "stream" else 0.0
    return max(1, round(rows * (1 - share)))


def batches(clips: list[int], recordings: Sequence[str], size: int, recipe: Recipe, fabric: Fabric, epoch: int) -> list[Tensor]:
    """The clips of each of an epoch's batches, this process's part; recordings: the one that each clip was cut from."""
    order = torch.tensor(clips)
    generator = torch.Generator().manual_seed(_mixed(ORDER, recipe.train.seed, epoch))
    if recipe.batch.balance:
        each = Counter(recordings)
        weights = torch.tensor([each[recording] ** -recipe.batch.balance for recording in recordings])
        order = order[torch.multinomial(weights, len(order), replacement=True, generator=generator)]
    elif recipe.batch.shuffle:
        order = order[torch.randperm(len(order), generator=generator)]
    whole = size * fabric.world_size
    batches = list(torch.split(order, whole))
    if len(batches) > 1 and len(batches[-1]) < (whole if recipe.batch.drop_last else 2 * fabric.world_size):
        batches.pop()
    return [batch[fabric.global_rank :: fabric.world_size] for batch in batches]


class Street:
    """Rows of endless street, mixed or recorded: what one hears in a step depends on the seed, the row and the step's number alone.

    Every row has its own length of soundscape, of LENGTH_S, and begins somewhere in the middle of its first one.
    """

    def __init__(self, cfg: Cfg, recipe: Recipe, bank: Bank, known: Annotated | None, rows: int, fabric: Fabric) -> None:
        self.frames, self.canvas = frames_of(cfg, recipe)
        self.hop = cfg.frontend.hop_length
        self.bank, self.known = bank, known
        self.recorded = recipe.stream.recorded if known else 0.0
        first = fabric.global_rank * rows
        self.seeds = [_mixed(STREET, recipe.train.seed, first + row) for row in range(rows)]
        steps = [max(1, round(length_s / recipe.stream.canvas_s)) for length_s in LENGTH_S]
        self.lengths = [steps[0] + number % (steps[1] - steps[0] + 1) for number in self.seeds]
        self.longest = steps[1] * self.frames * self.hop + self.canvas
        self.audio: NDArray[np.int16] = np.zeros((0, 0), np.int16)
        self.truth: dict[int, tuple[int, Soundscape]] = {}

    def passages(self, step: int) -> list[Passage]:
        """What each row hears in a step."""
        if not len(self.audio):
            self.audio = np.zeros((len(self.seeds), self.longest), np.int16)
        rows = enumerate(zip(self.seeds, self.lengths, strict=True))
        return [self._passage(row, step + seed // 64 % length) for row, (seed, length) in rows]

    def _passage(self, row: int, at: int) -> Passage:
        number, part = divmod(at, self.lengths[row])
        if row not in self.truth or self.truth[row][0] != number:
            samples = self.lengths[row] * self.frames * self.hop + self.canvas
            scene = self._scene(samples, [self.seeds[row], number])
            self.audio[row, :samples] = np.round(scene.audio * (FULL_SCALE - 1)).astype(np.int16)
            self.truth[row] = number, replace(scene, audio=np.zeros(0, np.float32))
        first = part * self.frames * self.hop
        audio = self.audio[row, first : first + self.canvas].copy()
        blocks = (first + np.arange(self.frames) * self.hop) // BLOCK
        truth = self.truth[row][1]
        return Passage(audio, truth.active[blocks], truth.faint[blocks], _mixed(STREET, self.seeds[row], number), part == 0)

    def _scene(self, samples: int, seed: list[int]) -> Soundscape:
        if self.known and np.random.default_rng([*seed, STREET]).random() < self.recorded:
            return recorded(self.known, self.bank.beds, self.bank.rate, samples, seed)
        return soundscape(self.bank, samples, seed, busy=True)

    def forget(self) -> None:
        """Give the memory back; what is asked for next is made anew."""
        self.audio, self.truth = np.zeros((0, 0), np.int16), {}

    def silence(self, rows: int) -> list[Passage]:
        """Passages of so many rows that take as much memory as real ones at most."""
        nothing = np.zeros((self.frames, len(self.bank.sources)), np.bool_)
        return [Passage(audio[: self.canvas], nothing, nothing, 0, True) for audio in np.full((rows, self.longest), 0, np.int16)]


def ahead(
    cfg: Cfg, recipe: Recipe, sounds: Sounds, order: list[Tensor], rows: int, step: int, fabric: Fabric, street: Street | None
) -> Iterator[Batch]:
    """Batches, the next one prepared while the last one is learnt from; a bar on a terminal."""

    def make(number: int) -> Batch:
        generator = torch.Generator().manual_seed(seed(recipe, step + number, fabric, DRAW))
        clips = order[number]
        passages = street.passages(step + number) if street else ()
        batch = prepare(cfg, recipe, sounds, clips, rows if street else len(clips), generator, passages)
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
    """A seed for one step of one process, for its DRAW or its DROPOUT."""
    return _mixed(what, recipe.train.seed, step, fabric.global_rank)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
