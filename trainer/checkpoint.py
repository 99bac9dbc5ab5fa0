"""A training's checkpoint: one file, the old one or the new one, from which the very next step is the one that would have been."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from detector.errors import CfgError, InputError, ModelError
from trainer.cfg import parse_cfg
from trainer.crnn import CRNN
from trainer.files import write_whole
from trainer.losses import Streams

NAME = "last.ckpt"

_FREE = {"verbosity", "tensorboard", "save_every", "save_dir", "metrics", "workers", "path", "name", "background", "recipe.cfg"}
"""Keys of a recipe that may change between one part of a training and the next, or are compared otherwise."""


@dataclass
class Progress:
    """Where a training is; with the weights and the optimizer all that a checkpoint needs."""

    epoch: int = 0
    step: int = 0
    spent_s: float = 0.0
    best_epoch: int = 0
    best_value: float = math.nan
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    streams: Streams | None = None


def save_training(out: Path, own: Mapping[str, Any], parts: Mapping[str, Any], progress: Progress, fabric: Fabric) -> None:
    """Write the checkpoint: own, what makes this training another than others; parts, what has a state_dict."""
    streams: list[Any] = [*progress.streams.state, progress.streams.context] if progress.streams else []
    if fabric.world_size > 1:
        streams = [fabric.all_gather(tensor) for tensor in streams]
    state = {
        "schema": 1,
        "own": dict(own),
        "parts": {name: part.state_dict() for name, part in parts.items() if part is not None},
        "progress": {key: value for key, value in vars(progress).items() if key != "streams"},
        "streams": streams,
    }
    if fabric.is_global_zero:
        write_packed(out / NAME, state)
    fabric.barrier()


def write_packed(path: Path, state: Mapping[str, Any]) -> None:
    """Write what torch.load reads, whole or not at all. Raises InputError."""
    packed = io.BytesIO()
    torch.save(dict(state), packed)  # not to the file: torch would hide why that fails
    write_whole(path, lambda partial: partial.write_bytes(packed.getbuffer()))


def load_training(out: Path, own: Mapping[str, Any], parts: Mapping[str, Any], fabric: Fabric) -> Progress:
    """Go on where the checkpoint in `out` stands, from the beginning where there is none. Raises InputError for another's."""
    path = out / NAME
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["own"]
    except Exception as error:
        raise InputError(str(path), "is not a checkpoint of urbandetect", "remove it, or begin anew with --fresh") from error
    difference = _difference(theirs, own, "")
    if difference:
        raise InputError(str(path), f"is of another training: {difference}", "give another --out, or begin anew with --fresh")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state["parts"][name])
    streams = state["streams"]
    if streams:
        mine = [(tensor[fabric.global_rank] if fabric.world_size > 1 else tensor).to(fabric.device) for tensor in streams]
        streams = Streams(tuple(mine[:-1]), mine[-1])
    return Progress(**state["progress"], streams=streams)


def _difference(theirs: Any, ours: Any, key: str) -> str:
    """The first key in which two trainings differ, in words."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in [*ours, *theirs]:
            inner = f"{key}.{name}" if key else name
            said = "" if _FREE & {name, inner} else _difference(theirs.get(name), ours.get(name), inner)
            if said:
                return said
        return ""
    if theirs == ours or (isinstance(ours, tuple) and list(ours) == theirs):
        return ""
    first = next((i for i, (a, b) in enumerate(zip(str(theirs), str(ours), strict=False)) if a != b), 0)
    was, now = (str(value)[max(0, first - 20) :][:40] for value in (theirs, ours))
    return f"{key} was {was!r}, now {now!r}"


def load_checkpoint(path: Path) -> tuple[CRNN, dict[str, Any]]:
    """A trained network and what was written with it. Raises ModelError for anything else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = CRNN(parse_cfg(checkpoint["cfg"], f"{path}:cfg"))
        model.load_state_dict(checkpoint["weights"])
    except CfgError:
        raise
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", "is the name of the model right?") from error
    except Exception as error:
        raise ModelError(
            str(path), "is not a checkpoint of urbandetect", "give the model.pt that `urbandetect train` wrote"
        ) from error
    return model.eval(), checkpoint
