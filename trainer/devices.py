"""Where a training runs: one device or several, in which precision."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only

from detector.errors import ConfigError
from trainer.recipe import Recipe

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def start(device: str, devices: int, recipe: Recipe) -> Fabric:
    """Where training runs: one process a device, all of them in step (DistributedDataParallel).

    Raises ConfigError for a device torch cannot use, or that cannot share the recipe's batches.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or devices > 1 or not index.isdigit())):
        raise ConfigError(f"--device {device} --devices {devices}", "is nothing to train on", "auto, cpu, cuda, or cuda:N for one")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}", "torch cannot use it", "cpu always works") from error
    if kind == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuDNN's LSTM adds in any order
        if devices > torch.cuda.device_count():
            raise ConfigError(f"--devices {devices}", f"there are {torch.cuda.device_count()} GPUs", "give no more")
    else:
        _keep_freed_memory()
    if recipe.batch.size % devices:
        raise ConfigError(f"--devices {devices}", f"cannot share batches of {recipe.batch.size} rows", "make batch.size a multiple")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every process it starts
    mixed = recipe.train.precision == "bf16" or (recipe.train.precision == "auto" and _multiplies_bfloat16(kind))
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if mixed else "32-true",
    )


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: the tensors of a step are large, and fresh pages for them cost a fifth of the time on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def is_first_process() -> bool:
    """Whether this is the one process that writes files; the others only train."""
    return not getattr(rank_zero_only, "rank", 0)


def _multiplies_bfloat16(kind: str) -> bool:
    """Whether mixed precision pays: on GPUs and processors with the instructions for it (here twice as fast)."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
