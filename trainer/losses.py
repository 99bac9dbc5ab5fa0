"""The two ways to learn: `stream_loss` from rows with carried state, `clip_loss` from whole clips."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.augment import mask
from trainer.crnn import CRNN, State
from trainer.frontend import whiten
from trainer.hear import Batch, hear, heard_frames, rows_of
from trainer.recipe import Recipe

HARD = 2.0
"""A false score of one half weighs as much as a missed one."""


@dataclass(frozen=True)
class Streams:
    """What the rows of a batch carry from one step to the next: the recurrent state and the last frames a row reads again."""

    state: State
    context: Tensor


def stream_loss(model: CRNN, batch: Batch, recipe: Recipe, streams: Streams | None) -> tuple[Tensor, Streams]:
    """Binary cross-entropy of every row and label, and cross-entropy of each clip's pooled answer.

    What is not there weighs HARD times its score: a network that must stay quiet learns most from what it mistakes, and there is
    far more that it does not (focal loss, Lin et al. 2017, with an exponent of 1, on one side). Not judged are a label's rows in
    which it may or may not be heard: batch.faint, and the soft parts of clips.
    """
    cfg, fe = model.cfg, model.cfg.frontend
    with torch.no_grad(), torch.autocast(batch.clips.device.type, enabled=False):
        heard = hear(model.frontend, batch, cfg.outputs)
        own, partner, own_clear, partner_clear = (
            rows_of(present, batch, cfg.stride_frames)
            for present in (heard.own, heard.partner, heard.own_clear, heard.partner_clear)
        )

        def labelled(own: Tensor, partner: Tensor) -> Tensor:
            return torch.maximum(heard.labels[:, None] * own[..., None], heard.partner_labels[:, None] * partner[..., None]) > 0

        wanted = labelled(own, partner)
        unsure = batch.faint | (wanted & ~labelled(own_clear, partner_clear))
        wanted = (wanted | batch.active).float()
        again = cfg.receptive_frames - cfg.stride_frames
        quiet = model.frontend.compress(torch.zeros(1, again, fe.n_mels, device=batch.clips.device))
        if streams is None:
            streams = Streams(model.fresh_state(len(own)), quiet.expand(len(own), -1, -1))
        state = tuple(torch.where(batch.fresh[None, :, None], 0.0, tensor) for tensor in streams.state)
        features = torch.cat([torch.where(batch.fresh[:, None, None], quiet, streams.context), heard.features], dim=2)

    logits, new = model.rows(features, state)
    logits = logits.float()
    weight = torch.where(wanted.any(2), 1.0, torch.where(batch.target < 0, recipe.stream.quiet, 1.0)[:, None])
    each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * ~unsure
    each = each * torch.where(wanted > 0, 1.0, HARD * torch.sigmoid(logits.detach()))
    loss = (each.sum(2) * weight).mean()
    sounding = own & (batch.target >= 0)[:, None]
    count = sounding.sum(1)
    pooled = (logits * sounding[..., None]).sum(1) / count.clamp_min(1)[:, None]
    share = wanted.amax(1) * (batch.target >= 0)[:, None]
    share = share / share.sum(1, keepdim=True).clamp_min(1)
    smoothing = recipe.train.label_smoothing
    answered = functional.cross_entropy(pooled, share, reduction="none", label_smoothing=smoothing) * (count > 0)
    loss = loss + answered.sum() / (count > 0).sum().clamp_min(1)
    return loss, Streams(
        tuple(tensor.detach().float() for tensor in new), features[:, :, features.shape[2] - again :].detach().clone()
    )


def clip_loss(model: CRNN, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of whole clips, each over its own frames only."""
    cfg = model.cfg
    with torch.no_grad(), torch.autocast(batch.clips.device.type, enabled=False):
        heard = hear(model.frontend, batch, cfg.outputs)
        frames = heard_frames(cfg, batch.drawn).clamp(max=batch.frames)
        features = heard.features
        if cfg.frontend.norm == "whiten":
            features = mask(whiten(features, frames.repeat_interleave(batch.channels)), batch.drawn.for_channels(batch.channels))
        count = torch.clamp((frames - cfg.receptive_frames) // cfg.stride_frames + 1, min=1)
        share = torch.maximum(heard.labels, heard.partner_labels).float()
    answers = model.pooled(features, count).float()
    return functional.cross_entropy(answers, share / share.sum(1, keepdim=True), label_smoothing=smoothing)
