"""The folds of a cross-validation on a Ray cluster: a task each, which goes on from its checkpoint where a worker was lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.cluster import connect
from detector.errors import TryAgainError, UrbandetectError

LOSSES = 5
"""So many workers may be lost over one fold."""


def train_on_ray(
    todo: Mapping[int, tuple[Any, ...]], address: str, say: Callable[[str], None], how: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each fold and its figures, as they are done; todo: what `run` takes for it. Data and results are in folders all nodes share.

    Raises what `run` does, as soon as a fold has; the others end, and go on from their checkpoints when the command is given again.
    """
    ray = connect(address)
    from ray.exceptions import RayError

    gpus = how["device"] != "cpu" and ray.cluster_resources().get("GPU", 0)
    needs: dict[str, Any] = {"num_gpus": how["devices"]} if gpus else {"num_cpus": 1}
    task: Any = ray.remote(**needs, max_retries=LOSSES, max_calls=1)(_train)
    asked: dict[Any, int] = {}
    try:
        for fold, (cfg, data, recipe, parts, out) in todo.items():
            here = replace(data, root=data.root.absolute(), clips=tuple(replace(c, path=c.path.absolute()) for c in data.clips))
            asked[task.remote((cfg, here, recipe, parts, out.absolute()), str(Path.cwd()), dict(how))] = fold
        while asked:
            (answer,), _ = ray.wait(list(asked), num_returns=1)
            fold = asked.pop(answer)
            try:
                figures = ray.get(answer)
            except RayError as error:
                if isinstance(cause := getattr(error, "cause", None), UrbandetectError):
                    raise cause from None
                what = f"fold {fold} was not trained ({' '.join(str(error).split())[-160:]})"
                raise TryAgainError(f"--ray {address}", what, "the same command goes on") from error
            say(f"fold {fold}: test accuracy {figures['metrics']['test']['accuracy']:.1%}")
            yield fold, figures
    finally:
        ray.shutdown()


def _train(what: tuple[Any, ...], folder: str, how: dict[str, Any]) -> dict[str, Any]:
    from trainer.run import run

    os.chdir(folder)
    return run(*what, say=lambda _: None, **how)
