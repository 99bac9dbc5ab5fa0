"""The reference project's config.json -> the tables of a recipe. docs/TRAINING.md has the same mapping as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detector.errors import ConfigError
from detector.tables import closest

MODELS = ("AudioCRNN", "AudioCNN", "AudioRNN")
STRETCH = {"p": 0.4, "rate": [0.6, 1.4]}
"""What its code does to every training batch, its config does not say it."""

SHORTEST_S = 1.0
"""Its code leaves shorter clips out of training."""

_METRICS = {"loss": "loss", "accuracy": "accuracy", "avg_precision": "precision", "avg_recall": "recall"}


def from_reference(config: Any, where: str) -> dict[str, Any]:
    """The recipe that does what this config says. Raises ConfigError naming a key it does not know or cannot do."""
    data: dict[str, Any] = {"min_clip_s": SHORTEST_S}
    batch: dict[str, Any] = {}
    augment: dict[str, Any] = {"stretch": STRETCH}
    train: dict[str, Any] = {"loss": "clip", "ema": 0.0, "clip_grad": 0.0}
    out: dict[str, Any] = {"data": data, "batch": batch, "augment": augment, "train": train}

    def put(table: dict[str, Any], key: str) -> Callable[[Any], None]:
        return lambda value: table.__setitem__(key, value)

    def must(key: str, *allowed: Any) -> Callable[[Any], None]:
        def one_of(value: Any) -> None:
            if value not in allowed:
                raise ConfigError(where, f"{key} = {value!r} cannot be done here", f"one of {', '.join(map(repr, allowed))}")

        return one_of

    def pair(key: str, target: str, second: str) -> Callable[[Any], None]:
        def set_pair(value: Any) -> None:
            if value and (not isinstance(value, list) or len(value) != 2):
                raise ConfigError(where, f"{key} = {value!r}", "write [probability, parameter]")
            if value and value[1]:  # a parameter of 0 does nothing
                augment[target] = {"p": value[0], second: value[1]}

        return set_pair

    def monitor(value: Any) -> None:
        words = str(value).split()
        metric = _METRICS.get(words[-1].removeprefix("val_")) if len(words) == 2 else None
        if metric is None:
            raise ConfigError(where, f"train.monitor = {value!r}", f"min or max and val_ with one of {', '.join(_METRICS)}")
        train["monitor"] = f"{words[0]} {metric}"

    keys: dict[str, Callable[[Any], None]] = {
        "name": lambda value: out.__setitem__("name", str(value).replace(" ", "-").lower()),
        "data.type": must("data.type", "CSVDataManager"),
        "data.path": put(data, "path"),
        "data.format": must("data.format", "audio"),
        "data.loader.batch_size": put(batch, "size"),
        "data.loader.num_workers": put(data, "workers"),
        "data.loader.shuffle": put(batch, "shuffle"),
        "data.loader.drop_last": put(batch, "drop_last"),
        "data.splits.train": put(data, "train"),
        "data.splits.val": put(data, "val"),
        "transforms.type": must("transforms.type", "AudioTransforms"),
        "transforms.args.channels": put(data, "channels"),
        "transforms.args.noise": pair("transforms.args.noise", "noise", "std"),
        "transforms.args.crop": pair("transforms.args.crop", "crop", "sigma"),
        "optimizer": put(out, "optimizer"),
        "lr_scheduler": put(out, "lr_scheduler"),
        "model.type": must("model.type", *MODELS),
        "train.loss": must("train.loss", "nll_loss"),
        "train.epochs": put(train, "epochs"),
        "train.save_dir": put(train, "save_dir"),
        "train.save_p": put(train, "save_every"),
        "train.verbosity": put(train, "verbosity"),
        "train.monitor": monitor,
        "train.early_stop": put(train, "early_stop"),
        "train.tbX": put(train, "tensorboard"),
        "metrics": must("metrics", "classification_metrics"),
    }

    def walk(value: Any, key: str) -> None:
        if key in keys:
            keys[key](value)
        elif isinstance(value, dict) and (not key or any(name.startswith(key + ".") for name in keys)):
            for name, item in value.items():
                walk(item, f"{key}.{name}" if key else name)
        elif any(name.startswith(f"{key}.") for name in keys) or not key:
            raise ConfigError(where, f"{key or 'the whole'} must be a table, not {value!r}"[:120])
        else:
            raise ConfigError(where, f"unknown key {key}", closest(key, keys))

    walk(config, "")
    train["metrics"] = ["accuracy", "precision", "recall"]
    return out
