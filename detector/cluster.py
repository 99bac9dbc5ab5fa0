"""Many recordings on a Ray cluster: actors that hold the model, one recording at a time each, and a driver that keeps the books.

Ray repeats nothing here: the driver gives a recording out again when the actor that had it is gone, and takes one outcome for each.
So a lost worker or node costs the recordings under way and their time.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.archive import Job, Outcome, died, examine
from detector.errors import ConfigError, TryAgainError, install
from detector.model import Model


class Hearer:
    """An actor: one core or one GPU, and the model. Recordings are read where it is, by the same names or URLs."""

    def __init__(self, content: bytes, job: Job, folder: str) -> None:
        """folder: what names are relative to. Raises OSError, which ends it, where there is no such folder."""
        os.chdir(folder)
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(content)
            file.flush()
            self._model: Model = replace(job, model=Path(file.name)).load()
        self._thresholds = job.thresholds

    def ready(self) -> None:
        """Answers when the model is loaded."""

    def hear(self, name: str) -> Outcome:
        """What is in this recording; what is not there on this node may be there on another day."""
        outcome = examine(name, self._model, self._thresholds, lambda _: None)
        return replace(outcome, again=outcome.again or ("://" not in name and not os.path.exists(name)))  # noqa: PTH110 - a Path's raises


def connect(address: str) -> Any:
    """The package ray, with this cluster behind it. Raises ConfigError without the package, TryAgainError without the cluster."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray", "needs ray", install("cluster")) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TryAgainError(
            f"--ray {address}", f"no cluster answers ({' '.join(str(error).split())[:160]})", "is it up?"
        ) from error
    return ray


def by_ray(todo: Sequence[str], job: Job, address: str) -> Iterator[Outcome]:
    """An outcome for each of `todo`, as they are ready. One actor a GPU where the cluster has some and the model may use them, else
    one a core. Raises ConfigError without ray, TryAgainError when there is no such cluster or no actor can begin."""
    ray = connect(address)
    from ray.exceptions import RayError

    has: dict[str, float] = ray.cluster_resources()
    gpus = int(has.get("GPU", 0)) if job.provider != "cpu" else 0
    needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    folder = "/" if all("://" in name or Path(name).is_absolute() for name in todo) else str(Path.cwd())
    content = ray.put(job.model.read_bytes())
    kind: Any = ray.remote(**needs, max_restarts=0, max_task_retries=0)(Hearer)
    asked: dict[Any, tuple[Any, str]] = {}  # an answer to come: whose, and over which recording; over none: whether it is ready
    idle: list[Any] = []
    waiting, deaths, never = deque(todo), dict[str, int](), 0

    def engage() -> None:
        actor = kind.remote(content, job, folder)
        asked[actor.ready.remote()] = (actor, "")

    for _ in range(min(len(todo), gpus or max(1, int(has.get("CPU", 1))))):
        engage()
    try:
        while waiting or any(name for _, name in asked.values()):
            while waiting and idle:
                actor, name = idle.pop(), waiting.popleft()
                asked[actor.hear.remote(name)] = (actor, name)
            (answer,), _ = ray.wait(list(asked), num_returns=1)
            actor, name = asked.pop(answer)
            try:
                outcome = ray.get(answer)
            except RayError as error:  # its actor or node is gone, out of memory, or raised what no recording should
                ray.kill(actor)
                never = 0 if name else never + 1
                if never > len(asked) + 3:
                    what = f"no worker can begin ({' '.join(str(error).split())[:160]})"
                    raise TryAgainError(f"--ray {address}", what, "is urbandetect installed on every node?") from error
                if name and (outcome := died(name, deaths, "a worker of the cluster")):
                    yield outcome
                elif name:
                    waiting.appendleft(name)
                engage()
                continue
            idle.append(actor)
            if name:
                yield outcome
    finally:
        ray.shutdown()
