"""Training, top to bottom: clips and backgrounds -> a network, its honest figures, one ONNX file.

A network that streams is trained as it will be used: every row of the batch is an endless stream. The next clip follows the
last one in its row with the recurrent state carried over, the gradient cut between them; backgrounds come in between with the
target "nothing". A network that needs whole clips is trained on whole clips.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from detector.errors import InputError
from trainer.augment import Augmentation, Draw, draw, equalise, mask, place, stretch, stretch_times
from trainer.cfg import Cfg
from trainer.crnn import CRNN, State
from trainer.data import DataSet, Decoded, background_files, decode
from trainer.evaluate import Figures, clip_scores, figures_of
from trainer.frontend import whiten


@dataclass(frozen=True)
class Recipe:
    """How to train. canvas_s: length of one training example; backgrounds: their share of a batch, quiet: what a row of one weighs
    against a row of a clip (sounds that are nothing are rare here and most of what a microphone hears); patience: epochs without a
    better validation loss before stopping; fresh: how often a row starts anew instead of carrying its state on."""

    epochs: int = 30
    batch_size: int = 40
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    canvas_s: float = 4.1
    backgrounds: float = 0.4
    quiet: float = 3.0
    fresh: float = 0.4
    ema: float = 0.995
    patience: int = 10
    seed: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Trained:
    """The best network by validation, and what it reaches. test is None when no fold was held out."""

    model: CRNN
    labels: tuple[str, ...]
    best_epoch: int
    validation: Figures
    test: Figures | None
    training: dict[str, Any]


@dataclass
class _Streams:
    """What the rows of the batch carry from one example to the next."""

    state: State
    context: Tensor


def train(
    cfg: Cfg,
    data: DataSet,
    recipe: Recipe,
    *,
    test_fold: int | None,
    validation_fold: int | None = None,
    background_folders: tuple[Path, ...] = (),
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Trained:
    """Train on every fold but two, choose the epoch on the validation fold, test once on the test fold.

    test_fold: None holds no fold out (for a model to ship). Raises InputError for a fold without clips and for audio that cannot
    be decoded.
    """
    validation_fold = validation_fold or data.validation_fold(test_fold)
    for fold in {test_fold, validation_fold} - {None}:
        if fold not in data.folds:
            raise InputError(str(data.root), f"fold {fold} has no clips", f"folds here: {', '.join(map(str, data.folds))}")
    if validation_fold == test_fold:
        raise InputError("--val-fold", f"fold {test_fold} cannot both choose the epoch and test it", "name another fold")
    if len(data.labels) != cfg.outputs:
        raise InputError(cfg.path, f"has {cfg.outputs} outputs and the data set {len(data.labels)} labels", "change the last layer")
    training_folds = [fold for fold in data.folds if fold not in (test_fold, validation_fold)]
    train_clips = data.of_folds(training_folds)
    if not train_clips:
        raise InputError(str(data.root), "no clips are left to train on", "at least three folds need clips")

    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    rate = cfg.frontend.sample_rate
    started = time.monotonic()
    audio = decode([clip.path for clip in data.clips], rate)
    targets = torch.tensor([clip.target for clip in data.clips])
    beds = decode(background_files(background_folders), rate) if background_folders else None
    say(
        f"train on folds {', '.join(map(str, training_folds))} ({len(train_clips)} clips, {len(beds) if beds else 0} backgrounds), "
        f"validate on fold {validation_fold}, test on {f'fold {test_fold}' if test_fold else 'none'}; "
        f"{cfg.parameters:,} parameters, {device}"
    )

    model = CRNN(cfg).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _learn_bands(model, audio, train_clips, generator)
    average = AveragedModel(model, avg_fn=partial(_moving_average, recipe.ema), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    clips_a_batch = max(1, round(recipe.batch_size * (1 - recipe.backgrounds))) if beds and not cfg.obstacles else recipe.batch_size
    steps = recipe.epochs * max(1, len(train_clips) // clips_a_batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))

    mixed_precision = _multiplies_bfloat16(device)
    best: tuple[float, int, dict[str, Tensor], Figures] | None = None
    streams: _Streams | None = None
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        losses = []
        order = torch.tensor(train_clips)[torch.randperm(len(train_clips), generator=generator)]
        for chosen in torch.split(order, clips_a_batch):
            if len(chosen) < clips_a_batch and len(order) >= clips_a_batch:
                continue  # a part batch would break the rows' streams
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=mixed_precision):
                if cfg.obstacles:
                    loss = _clip_loss(model, audio, chosen, targets[chosen], recipe, generator, device)
                else:
                    loss, streams = _stream_loss(model, audio, chosen, targets[chosen], beds, recipe, generator, streams, device)
            if not math.isfinite(loss.item()):
                raise InputError("training", f"the loss is {loss.item()} in epoch {epoch}", "lower --lr")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(loss.item())
        candidate = average.module
        validation = _figures(candidate, audio, targets, data, validation_fold)
        if best is None or validation.loss < best[0]:
            best = (validation.loss, epoch, copy.deepcopy(candidate.state_dict()), validation)
        spent = time.monotonic() - started
        left = spent / epoch * (recipe.epochs - epoch)
        line = (
            f"epoch {epoch:3d}/{recipe.epochs}  loss {np.mean(losses):.3f}  validation loss {validation.loss:.3f}  "
            f"accuracy {validation.accuracy:.1%}  best epoch {best[1]}  left {left / 60:.1f} min"
        )
        say(line)
        if epoch - best[1] >= recipe.patience:
            say(f"no better validation loss for {recipe.patience} epochs: stopped")
            break
    assert best is not None
    _, best_epoch, weights, validation = best
    model.load_state_dict(weights)
    model.eval()
    test = _figures(model, audio, targets, data, test_fold) if test_fold else None
    facts = {
        "recipe": asdict(recipe),
        "data": "UrbanSound8K" + (f" and {len(beds)} backgrounds" if beds else ""),
        "clips": len(train_clips),
        "folds": {"train": training_folds, "validation": validation_fold, "test": test_fold},
        "seed": recipe.seed,
        "licence": "trained on UrbanSound8K (CC BY-NC 3.0): non-commercial use",
        "seconds": round(time.monotonic() - started),
    }
    return Trained(model, data.labels, best_epoch, validation, test, facts)


def _multiplies_bfloat16(device: str) -> bool:
    """Whether mixed precision pays: on a GPU, and on processors with the instructions for it (there twice as fast)."""
    cpuinfo = Path("/proc/cpuinfo")
    return device != "cpu" or (cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text())


def _moving_average(decay: float, average: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
    """An exponential moving average that forgets its first steps sooner, so that a short training is averaged too."""
    return average + (new - average) * (1 - min(decay, float((1 + steps) / (10 + steps))))


def _warm_cosine(step: int, steps: int) -> float:
    """A short warm-up, then half a cosine down to 1 %."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _learn_bands(model: CRNN, audio: Decoded, clips: list[int], generator: torch.Generator) -> None:
    """Fix the front end's mean and deviation per band from a sample of the training clips."""
    if model.cfg.frontend.norm != "bands":
        return
    chosen = torch.tensor(clips)[torch.randperm(len(clips), generator=generator)[:256]]
    length = int(2 * model.cfg.frontend.sample_rate) // model.cfg.frontend.hop_length * model.cfg.frontend.hop_length
    with torch.no_grad():
        batch, samples = _batch(audio, chosen, length)
        whole = samples >= length
        model.frontend.learn_bands((batch[whole] if whole.any() else batch)[:, :length].to(model.frontend.window.device))


def _batch(audio: Decoded, chosen: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Clips as [clips, longest] float32 with zeros after each one's end, and their lengths."""
    parts = [audio[int(index)] for index in chosen]
    batch = np.zeros((len(parts), max(least, *(len(part) for part in parts))), np.float32)
    for row, part in zip(batch, parts, strict=True):
        row[: len(part)] = part
    return torch.from_numpy(batch / 32768), torch.tensor([len(part) for part in parts])


def _beds(beds: Decoded | None, count: int, canvas: int, generator: torch.Generator) -> Tensor:
    """A random stretch of a random background per example, repeated where it is short."""
    out = np.zeros((count, canvas), np.float32)
    if beds:
        which = torch.randint(len(beds), (count,), generator=generator)
        where = torch.rand(count, generator=generator)
        for row, index, at in zip(out, which.tolist(), where.tolist(), strict=True):
            bed = beds[index]
            if len(bed):
                first = int(at * max(1, len(bed) - canvas))
                row[:] = np.resize(bed[first : first + canvas], canvas)
    return torch.from_numpy(out / 32768)


def _stream_loss(
    model: CRNN,
    audio: Decoded,
    chosen: Tensor,
    target: Tensor,
    beds: Decoded | None,
    recipe: Recipe,
    generator: torch.Generator,
    streams: _Streams | None,
    device: str,
) -> tuple[Tensor, _Streams]:
    """One example per row: binary cross-entropy of every row and label, and cross-entropy of the clip's pooled answer."""
    cfg, fe = model.cfg, model.cfg.frontend
    rows = recipe.batch_size if beds else len(chosen)
    hops = max(1, round(recipe.canvas_s * fe.sample_rate / cfg.hop))
    frames = hops * cfg.stride_frames
    canvas = math.ceil(frames * (1 + recipe.augmentation.stretch)) * fe.hop_length + fe.n_fft - fe.hop_length

    clips, samples = _batch(audio, chosen)
    seats = torch.randperm(rows, generator=generator)[: len(chosen)]
    batch, lengths, classes = torch.zeros(rows, clips.shape[1]), torch.ones(rows, dtype=torch.long), torch.full((rows,), -1)
    batch[seats], lengths[seats], classes[seats] = clips, samples, target
    bed = _beds(beds, rows, canvas, generator)
    bed += _beds(beds, rows, canvas, generator) * (torch.rand(rows, 1, generator=generator) * 2 - 1).clamp_min(0)
    bed[(classes < 0) & (torch.rand(rows, generator=generator) < 0.1)] = 0  # silence is a background too
    drawn = draw(recipe.augmentation, lengths, canvas, fe.n_mels, frames, generator).to(torch.device(device))
    batch, bed, classes = batch.to(device), bed.to(device), classes.to(device)

    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        mixed, sounds = place(batch, bed, drawn)
        magnitude = equalise(stretch(model.frontend.magnitude(mixed), drawn.rate, frames), drawn)
        features = model.frontend.bands_of_magnitude(magnitude)
        features = mask(features, drawn)
        labels = functional.one_hot(classes.clamp(min=0), cfg.outputs) * (classes >= 0)[:, None]
        own, partner = (
            stretch_times(flags[:, :: fe.hop_length], drawn.rate, frames).view(rows, hops, cfg.stride_frames).float().mean(2) >= 0.5
            for flags in (sounds, sounds[drawn.partner] & ((drawn.partner_gain > 0) & (classes >= 0))[:, None])
        )
        wanted = torch.maximum(labels[:, None] * own[..., None], labels[drawn.partner][:, None] * partner[..., None]).float()

        quiet = model.frontend.compress(torch.zeros(1, cfg.receptive_frames - cfg.stride_frames, fe.n_mels, device=device))
        if streams is None:
            streams = _Streams(model.fresh_state(rows), quiet.expand(rows, -1, -1))
        fresh = (torch.rand(rows, generator=generator) < recipe.fresh).to(device)
        state = tuple(torch.where(fresh[None, :, None], 0.0, tensor) for tensor in streams.state)
        features = torch.cat([torch.where(fresh[:, None, None], quiet, streams.context), features], dim=2)

    logits, new = model.rows(features, state)
    logits = logits.float()
    weight = torch.where(classes < 0, recipe.quiet, 1.0)[:, None]
    loss = (functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(2) * weight).mean()
    heard = own & (classes >= 0)[:, None]
    if heard.any():
        whole = heard.any(1)
        pooled = (logits * heard[..., None]).sum(1)[whole] / heard.sum(1, keepdim=True)[whole]
        share = wanted.amax(1)[whole]
        loss = loss + functional.cross_entropy(pooled, share / share.sum(1, keepdim=True))
    carried = _Streams(tuple(tensor.detach().float() for tensor in new), features[:, :, features.shape[2] - quiet.shape[2] :])
    return loss, carried


def _clip_loss(
    model: CRNN, audio: Decoded, chosen: Tensor, target: Tensor, recipe: Recipe, generator: torch.Generator, device: str
) -> Tensor:
    """Cross-entropy of whole clips, for a network that does not stream: cropped, noisy, stretched, at any gain."""
    cfg, fe = model.cfg, model.cfg.frontend
    clips, samples = _batch(audio, chosen, cfg.receptive_samples)
    frames = math.ceil((clips.shape[1] - fe.n_fft) / fe.hop_length * (1 + recipe.augmentation.stretch)) + 1
    drawn = draw(recipe.augmentation, samples, clips.shape[1], fe.n_mels, frames, generator).to(torch.device(device))
    clips, samples, target = clips.to(device), samples.to(device), target.to(device)
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        clips, _ = place(clips, torch.zeros_like(clips), _from_the_start(drawn))
        heard = torch.clamp(((drawn.keep - fe.n_fft) // fe.hop_length + 1) / drawn.rate, min=1).long().clamp(max=frames)
        magnitude = equalise(stretch(model.frontend.magnitude(clips), drawn.rate, frames), drawn)
        features = model.frontend.bands_of_magnitude(magnitude)
        if fe.norm == "whiten":
            features = whiten(features, heard)
        count = torch.clamp((heard - cfg.receptive_frames) // cfg.stride_frames + 1, min=1)
    return functional.cross_entropy(model.pooled(features, count).float(), target)


def _from_the_start(drawn: Draw) -> Draw:
    """The same draw without what only a stream has: a late start and a second clip."""
    return replace(drawn, offset=torch.zeros_like(drawn.offset), partner_gain=torch.zeros_like(drawn.partner_gain))


def _figures(model: nn.Module, audio: Decoded, targets: Tensor, data: DataSet, fold: int) -> Figures:
    assert isinstance(model, CRNN)
    clips = data.of_folds([fold])
    return figures_of(clip_scores(model, [audio[index] for index in clips]), targets[clips].numpy(), data.labels)
