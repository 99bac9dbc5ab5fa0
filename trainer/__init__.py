"""Build a CRNN from a .cfg, train it on UrbanSound8K, evaluate it honestly, export it to one ONNX file.

The public names are imported when they are first used: `detector` reads a .cfg without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.cfg import load_cfg
    from trainer.crnn import CRNN
    from trainer.data import load_dataset, split
    from trainer.evaluation import evaluate
    from trainer.exporter import export
    from trainer.recipe import load_recipe
    from trainer.training import train

__all__ = ["CRNN", "evaluate", "export", "load_cfg", "load_dataset", "load_recipe", "split", "train"]

_ROOMS = {
    "CRNN": "crnn",
    "evaluate": "evaluation",
    "export": "exporter",
    "load_cfg": "cfg",
    "load_dataset": "data",
    "load_recipe": "recipe",
    "split": "data",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
