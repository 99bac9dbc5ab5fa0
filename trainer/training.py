"""Training, top to bottom: clips and backgrounds -> the best network by validation, and its honest figures.

A network that streams is trained as it will be used: every row of the batch is an endless stream. In most rows the next clip
follows the last one with the recurrent state carried over, the gradient cut between them; the others hear minutes of street. A
network that needs whole clips is trained on whole clips. Every step depends on the weights, the optimizer and its own number
alone, so that a training goes on after a kill as if nothing had happened.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from detector.errors import ConfigError, InputError
from trainer.board import Board, DeviceTime
from trainer.cfg import Cfg
from trainer.checkpoint import Progress, load_checkpoint, load_training, save_training
from trainer.crnn import CRNN
from trainer.data import FULL_SCALE, DataSet, Decoded, Split, folds_in_words
from trainer.devices import is_first_process, start
from trainer.evaluation import METRICS, Figures, clip_scores, figures_of
from trainer.hear import Batch, Sounds, cut
from trainer.loader import DROPOUT, Street, ahead, batches, clips_a_batch, load_sounds, seed
from trainer.losses import Streams, clip_loss, stream_loss
from trainer.memory import full_memory_is_said
from trainer.recipe import Recipe, as_tables, make_optimizer, make_scheduler
from trainer.recorded import annotated
from trainer.streams import bank


@dataclass(frozen=True)
class Trained:
    """The best network by validation, and what it reaches, test None when no fold was held out; data, sounds: what was used."""

    model: CRNN
    labels: tuple[str, ...]
    best_epoch: int
    validation: Figures
    test: Figures | None
    training: dict[str, Any]
    data: DataSet
    sounds: Sounds


def train(
    cfg: Cfg,
    data: DataSet,
    recipe: Recipe,
    split: Split,
    *,
    out: Path | None = None,
    begin: Path | None = None,
    device: str = "auto",
    devices: int = 1,
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
) -> Trained:
    """Train on the split's training folds, choose the epoch on its validation folds, test once on its test folds.

    Where no fold is tested, the backgrounds that would only test train too.

    out: a folder for the checkpoint and TensorBoard's log; a training there that was interrupted goes on. begin: a model.pt whose
    weights to begin with. devices: how many GPUs (or processes, on `cpu`) share each batch. Raises InputError for folds without
    clips, for audio that cannot be decoded (with skip_bad it is left out), for a loss that is no number, and ConfigError for what
    does not fit: recipe and cfg, batch and memory, weights to begin with.
    """
    _check(cfg, data, recipe)
    fabric = start(device, devices, recipe)
    say = say if is_first_process() and recipe.train.verbosity else lambda _: None
    part = "train" if split.test else "ship"
    data, sounds = load_sounds(cfg, data, recipe, part, skip_bad, say)
    table = Path(recipe.data.recordings) if recipe.data.recordings else None
    known = annotated(table, data.labels, split.train, cfg.frontend.sample_rate) if table else None
    fabric.launch()  # the other processes begin where the sounds are decoded
    train_clips, validation_clips, test_clips = (data.of_folds(folds) for folds in (split.train, split.validation, split.test))
    shortest = recipe.data.min_clip_s * cfg.frontend.sample_rate
    lengths = np.diff(sounds.clips.starts)
    train_clips = [clip for clip in train_clips if lengths[clip] >= shortest]
    for clips, name in ((train_clips, "train on"), (validation_clips, "validate on")):
        if not clips:
            raise InputError(str(data.root), f"no clips are left to {name}", "at least three folds need clips")

    torch.manual_seed(recipe.train.seed)
    module = CRNN(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if begin:
        module.load_state_dict(_weights_of(begin, cfg, split))
    if not begin:
        _learn_bands(module, sounds.clips, train_clips, recipe.train.seed)
    optimizer = make_optimizer(recipe, module.parameters())
    rows = math.ceil(recipe.batch.size / fabric.world_size)
    if recipe.train.loss == "clip" and min(len(train_clips), recipe.batch.size) < 2 * fabric.world_size:
        raise ConfigError(
            f"batch.size = {recipe.batch.size}", "leaves a process less than two clips, too few for a batch norm", "raise it"
        )
    longest = torch.tensor(sorted(train_clips, key=lambda clip: -lengths[clip]))
    order = partial(
        batches, train_clips, [data.clips[clip].recording for clip in train_clips], clips_a_batch(rows, recipe), recipe, fabric
    )
    street = None
    if recipe.train.loss == "stream":
        made_of = bank(data, train_clips, sounds.clips, sounds.beds, cfg.frontend.sample_rate)
        street = Street(cfg, recipe, made_of, known, rows - clips_a_batch(rows, recipe), fabric)
    schedule = make_scheduler(recipe, optimizer, len(order(1)))
    model, optimizer = fabric.setup(module, optimizer)
    for method in ("rows", "pooled"):
        model.mark_forward_method(method)
    average = _twin(module) if recipe.train.ema else None

    facts: dict[str, Any] = {
        "recipe": as_tables(recipe),
        "data": "UrbanSound8K"
        + (f" and {len(sounds.beds)} backgrounds" if sounds.beds else "")
        + (f" and {len(known.events)} annotated recordings of its folds" if known else ""),
        "clips": len(train_clips),
        "background_part": part,
        "folds": split.as_json(),
        "protocol": split.protocol,
        "began_with": sha256(begin.read_bytes()).hexdigest() if begin else None,
        "licence": "trained on UrbanSound8K (CC BY-NC 3.0): non-commercial use",
    }
    names = [Path(folder).name for folder in recipe.data.background]
    own = facts | {"cfg": cfg.text, "labels": list(data.labels), "backgrounds": names, "processes": fabric.world_size}
    parts = {"model": module, "average": average, "optimizer": optimizer, "schedule": schedule}
    progress = load_training(out, own, parts, fabric) if out else Progress()
    say(
        f"train on folds {', '.join(map(str, split.train))} ({len(train_clips)} clips, {len(sounds.beds or ())} backgrounds, "
        f"{len(known.events) if known else 0} annotated recordings), "
        f"validate on {split.validation_name}, test on {split.test_name}; {cfg.parameters:,} parameters, "
        f"{fabric.world_size} x {fabric.device}, {fabric._precision.precision}"
        + (f"; going on after epoch {progress.epoch}" if progress.epoch else "")
    )
    board = Board(out / "tensorboard" if out and recipe.train.tensorboard and fabric.is_global_zero else None, progress.epoch)
    metric, more_is_better = recipe.monitored

    while progress.epoch < recipe.train.epochs and not _enough(recipe, progress):
        epoch, began = progress.epoch + 1, time.perf_counter()
        model.train()
        device_time = DeviceTime(fabric.device)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        with full_memory_is_said(
            cfg, recipe, sounds, longest, street, fabric, lambda b: _gradients(fabric, model, b, recipe, None)
        ):
            for batch in ahead(cfg, recipe, sounds, order(epoch), rows, progress.step, fabric, street):
                torch.manual_seed(seed(recipe, progress.step, fabric, DROPOUT))
                with device_time:
                    batch = batch.to(fabric.device)
                    loss, progress.streams = _gradients(fabric, model, batch, recipe, progress.streams)
                    if recipe.train.clip_grad:
                        norm = fabric.clip_gradients(model, optimizer, max_norm=recipe.train.clip_grad, error_if_nonfinite=False)
                        norms += [norm] if norm is not None else []
                    optimizer.step()
                    if average:
                        _follow(average, module, recipe.train.ema, progress.step)
                if schedule and recipe.lr_scheduler and recipe.lr_scheduler.interval == "step":
                    schedule.step()
                if not losses and epoch % 10 == 1:
                    board.spectrograms(module, batch, data.labels, epoch)
                losses.append(loss)
                progress.step += 1
        of_batches = torch.stack(losses).tolist()
        for number, each in enumerate(of_batches, 1):
            _must_be_finite(each, f"batch {number} of epoch {epoch}", module, recipe, progress, out)
        candidate = average or module
        with device_time:  # the first process decides for all: their batch norms have seen different rows
            own_figures: Any = _figures(candidate, sounds, data, validation_clips) if fabric.is_global_zero else None
            validation: Figures = fabric.broadcast(own_figures)
        _must_be_finite(validation.loss, f"the validation of epoch {epoch}", module, recipe, progress, out)
        value, rate = epoch if metric == "epoch" else getattr(validation, metric), optimizer.param_groups[0]["lr"]
        if schedule and recipe.lr_scheduler and recipe.lr_scheduler.interval == "epoch":
            schedule.step(value) if isinstance(schedule, ReduceLROnPlateau) else schedule.step()
        if not progress.best_weights or (value > progress.best_value if more_is_better else value < progress.best_value):
            progress.best_epoch, progress.best_value = epoch, value
            progress.best_weights = copy.deepcopy(candidate.state_dict())
        progress.epoch = epoch
        wall_s = time.perf_counter() - began
        progress.spent_s += wall_s
        mean_loss, busy = sum(of_batches) / len(of_batches), device_time.seconds() / wall_s
        board.epoch(epoch, mean_loss, validation, rate, torch.stack(norms).tolist() if norms else [], wall_s, busy)
        said = "  ".join(f"{name} {_shown(name, getattr(validation, name))}" for name in recipe.train.metrics)
        say(
            f"epoch {epoch:3d}/{recipe.train.epochs}  loss {mean_loss:.3f}  validation loss {validation.loss:.3f}  {said}  "
            f"best epoch {progress.best_epoch}  {wall_s:.1f} s, device busy {busy:.0%}  "
            f"left {progress.spent_s / epoch * (recipe.train.epochs - epoch) / 60:.1f} min"
        )
        if out and (epoch % recipe.train.save_every == 0 or epoch == recipe.train.epochs or _enough(recipe, progress)):
            save_training(out, own, parts, progress, fabric)
    if _enough(recipe, progress):
        say(f"no better {metric} on the validation fold for {recipe.train.early_stop} epochs: stopped")
    module.load_state_dict(progress.best_weights)
    module.eval()
    validation = _figures(module, sounds, data, validation_clips, interval=True)
    test = _figures(module, sounds, data, test_clips, interval=True) if test_clips else None
    board.close(validation, test, progress.epoch + 1)
    return Trained(
        module, data.labels, progress.best_epoch, validation, test, facts | {"seconds": round(progress.spent_s, 1)}, data, sounds
    )


def _check(cfg: Cfg, data: DataSet, recipe: Recipe) -> None:
    """Raise ConfigError or InputError where cfg, data and recipe do not fit together."""
    if len(data.labels) != cfg.outputs:
        raise InputError(cfg.path, f"has {cfg.outputs} outputs and the data set {len(data.labels)} labels", "change the last layer")
    if recipe.train.loss == "stream" and cfg.obstacles:
        raise ConfigError(cfg.path, f"does not stream: {cfg.obstacles[0]}", 'train it with a recipe of loss = "clip"')
    if (recipe.data.channels == "stereo") != (cfg.channels == 2):
        raise ConfigError(
            cfg.path,
            f"has {cfg.channels} input channel{'s' * (cfg.channels > 1)} and data.channels is {recipe.data.channels!r}",
            f"for stereo write [input] shape=[2, {cfg.frontend.n_mels}, frames] in the cfg, else channels = avg",
        )
    if recipe.train.loss == "clip" and recipe.data.recordings:
        raise ConfigError("data.recordings", 'are heard in streams, and train.loss is "clip"', "leave --recordings away")
    if recipe.train.loss == "clip" and recipe.augment.background.p and not recipe.data.background:
        raise ConfigError("recipe", "augment.background has no background folder", "give one with --background")


def _weights_of(begin: Path, cfg: Cfg, split: Split) -> dict[str, Tensor]:
    """The weights of a model.pt to begin with. Raises ConfigError where it is another network, or has seen what is to be tested."""
    model, checkpoint = load_checkpoint(begin)
    if model.cfg.text != cfg.text:
        raise ConfigError(f"--from {begin}", f"is not the network of {cfg.path}", "give one of the same cfg")
    folds = checkpoint["training"].get("folds", {})
    seen = sorted({*split.test} & {*folds.get("train", ()), *folds.get("validation", ())})
    if seen:
        raise ConfigError(f"--from {begin}", f"was trained or chosen on {folds_in_words(seen)}, which is to be tested")
    return model.state_dict()


def _learn_bands(model: CRNN, audio: Decoded, clips: list[int], seed: int) -> None:
    """Fix the front end's mean and deviation per band from a sample of the training clips."""
    if model.cfg.frontend.norm != "bands":
        return
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(clips)[torch.randperm(len(clips), generator=generator)[:256]]
    fe = model.cfg.frontend
    length = 2 * fe.sample_rate // fe.hop_length * fe.hop_length
    whole = chosen[torch.from_numpy(np.diff(audio.starts))[chosen] >= length]
    chosen = whole if len(whole) else chosen
    with torch.no_grad():
        none = torch.zeros_like(chosen)
        model.frontend.learn_bands(cut(audio, chosen, none, none + length, none, length) / FULL_SCALE)


def _loss(model: Any, batch: Batch, recipe: Recipe, streams: Streams | None) -> tuple[Tensor, Streams | None]:
    if recipe.train.loss == "clip":
        return clip_loss(model, batch, recipe.train.label_smoothing), None
    return stream_loss(model, batch, recipe, streams)


def _gradients(fabric: Fabric, model: Any, batch: Batch, recipe: Recipe, streams: Streams | None) -> tuple[Tensor, Streams | None]:
    """The loss of a batch over all devices, its gradient left with the weights."""
    loss, streams = _loss(model, batch, recipe, streams)
    model.zero_grad()
    fabric.backward(loss)
    return fabric.all_reduce(loss.detach(), reduce_op="mean"), streams  # type: ignore[return-value]


def _enough(recipe: Recipe, progress: Progress) -> bool:
    patience = recipe.train.early_stop
    return bool(patience) and progress.epoch - progress.best_epoch >= patience


def _twin(module: CRNN) -> CRNN:
    """A copy of the network for the averaged weights."""
    twin = copy.deepcopy(module).requires_grad_(False)
    for layer in twin.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # the copy's weights lie apart, which cuDNN warns of
    return twin


@torch.no_grad()
def _follow(average: CRNN, module: CRNN, decay: float, step: int) -> None:
    """Move the averaged weights towards the new ones: exponentially, sooner at first, so that a short training is averaged too."""
    weight = 1 - min(decay, (1 + step) / (10 + step)) if step else 1.0
    averaged, new = list(average.state_dict().values()), list(module.state_dict().values())
    pairs = [(old, value) for old, value in zip(averaged, new, strict=True) if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in pairs], [value for _, value in pairs], weight)
    for old, value in zip(averaged, new, strict=True):
        if not old.is_floating_point():
            old.copy_(value)


def _figures(model: torch.nn.Module, sounds: Sounds, data: DataSet, clips: list[int], interval: bool = False) -> Figures:
    assert isinstance(model, CRNN)
    recordings = [data.clips[index].recording for index in clips]
    logits = clip_scores(model, [sounds.clips[index] for index in clips])
    with np.errstate(all="ignore"):
        return figures_of(logits, sounds.targets[clips].numpy(), data.labels, recordings, interval=interval)


def _must_be_finite(loss: float, where: str, module: CRNN, recipe: Recipe, progress: Progress, out: Path | None) -> None:
    """Raise InputError for a loss that is no number, before anything of it is kept."""
    if math.isfinite(loss):
        return
    bad = next((name for name, parameter in module.named_parameters() if not parameter.isfinite().all()), None)
    saved = progress.epoch - progress.epoch % recipe.train.save_every
    kept = f"; the weights of epoch {saved} are kept in {out}" if out and saved else ""
    said = f", first in the weights {bad.removeprefix('layers.')}" if bad else ", the weights are still finite"
    raise InputError("training", f"the loss is {loss} in {where}{said}{kept}", "lower the learning rate")


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if METRICS[name] else f"{value:.3f}"
