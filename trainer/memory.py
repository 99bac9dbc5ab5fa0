"""A batch that does not fit into memory: the error says which one does."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor

from detector.errors import ConfigError
from trainer.cfg import Cfg
from trainer.hear import Batch, Sounds, prepare
from trainer.loader import Street, clips_a_batch
from trainer.recipe import Recipe

SIGNS = ("allocate memory", "create a primitive", "ALLOC_FAILED")
"""What torch's CPU allocator, oneDNN, cuDNN and cuBLAS say of a full memory; the rest of CUDA has an error of its own."""
MARGIN = 1.25
"""A trial is of so many times the rows that are said to fit: a training also has an optimizer's state and a loader's thread."""


@contextmanager
def full_memory_is_said(
    cfg: Cfg,
    recipe: Recipe,
    sounds: Sounds,
    clips: Tensor,
    street: Street | None,
    fabric: Fabric,
    learn: Callable[[Batch], object],
) -> Iterator[None]:
    """Turn a full memory into a ConfigError that names a batch size that fits: tried out with `learn`, half by half.

    clips: those to try with, the longest first; street: what the other rows hear, if any.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(sign in str(error) for sign in SIGNS):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what did not fit
        if street:
            street.forget()
    else:
        return
    size = recipe.batch.size // 2
    if fabric.world_size > 1:  # the other processes would wait for a trial for ever
        raise ConfigError(f"batch.size = {recipe.batch.size}", f"does not fit into the memory of {fabric.device}", f"try {size}")
    while size > 1 and not _fits(cfg, recipe, sounds, clips, street, fabric, learn, size):
        size //= 2
    raise ConfigError(
        f"batch.size = {recipe.batch.size}",
        f"does not fit into the memory of {fabric.device}",
        f"{size} does" if size > 1 else "not even 2 does: close other programs, or take a smaller network or a shorter canvas",
    )


def _fits(
    cfg: Cfg,
    recipe: Recipe,
    sounds: Sounds,
    clips: Tensor,
    street: Street | None,
    fabric: Fabric,
    learn: Callable[[Batch], object],
    size: int,
) -> bool:
    """Whether a step with a batch of MARGIN times this size fits into memory, beside the next batch."""
    rows = math.ceil(MARGIN * size)
    chosen = clips[: clips_a_batch(rows, recipe)]
    gc.collect()  # what did not fit may be held in cycles
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        passages = street.silence(rows - clips_a_batch(rows, recipe)) if street else ()
        plan = partial(prepare, cfg, recipe, sounds, chosen, rows if street else len(chosen), passages=passages)
        batch, _ahead = (plan(generator=torch.Generator().manual_seed(number)) for number in range(2))
        learn(batch.to(fabric.device))
    except (RuntimeError, MemoryError):
        return False
    return True
