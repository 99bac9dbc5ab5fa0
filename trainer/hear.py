"""What the network hears in a step: `prepare` plans a batch and fetches its sound, `hear` augments it on the training device.

A batch depends on its clips and a seeded generator alone, so that a step can be prepared ahead, replayed, and resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from trainer.augment import mask, place, shape, stretch_times
from trainer.cfg import Cfg
from trainer.data import FULL_SCALE, Decoded
from trainer.draw import Draw, draw
from trainer.frontend import LogMel
from trainer.layers import Frontend
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Sounds:
    """What training reads: the clips, their labels [clips], the backgrounds to train on and those to choose thresholds by."""

    clips: Decoded
    targets: Tensor
    beds: Decoded | None = None
    quiet: Decoded | None = None


@dataclass(frozen=True)
class Batch:
    """clips: int16 [rows * channels, canvas]; beds, seconds: int16, the backgrounds of some rows and the second ones added to some
    of those, bed_rows and second_rows say to which; target: [rows], -1 where a row has no clip; fresh: [rows], those that start
    anew; frames: of the spectrogram of each example."""

    clips: Tensor
    beds: Tensor
    bed_rows: Tensor
    seconds: Tensor
    second_rows: Tensor
    target: Tensor
    fresh: Tensor
    drawn: Draw
    frames: int
    channels: int

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, drawn=self.drawn.to(device), **moved)

    def pinned(self) -> Batch:
        """The same in memory that a GPU reads by itself."""
        return replace(self, clips=self.clips.pin_memory(), beds=self.beds.pin_memory(), seconds=self.seconds.pin_memory())


@dataclass(frozen=True)
class Heard:
    """features: [rows * channels, n_mels, frames]; labels: [rows, labels], the clip's own and its partner's where it has one;
    own, partner: [rows, source frames], where the clip and the one mixed in sound, `rate` not yet applied."""

    features: Tensor
    own: Tensor
    partner: Tensor
    labels: Tensor
    partner_labels: Tensor


def prepare(cfg: Cfg, recipe: Recipe, sounds: Sounds, chosen: Tensor, rows: int, generator: torch.Generator) -> Batch:
    """Plan a batch of `rows` rows with the chosen clips in some of them. Streams hear a canvas of one length, clips their own."""
    fe, augment = cfg.frontend, recipe.augment
    stream = recipe.train.loss == "stream"
    seats = torch.randperm(rows, generator=generator)[: len(chosen)] if stream else torch.arange(rows)
    which, lengths, target = torch.full((rows,), -1), torch.ones(rows, dtype=torch.long), torch.full((rows,), -1)
    starts = torch.from_numpy(sounds.clips.starts)
    which[seats], lengths[seats], target[seats] = chosen, starts[chosen + 1] - starts[chosen], sounds.targets[chosen]
    if stream:
        frames = max(1, round(recipe.stream.canvas_s * fe.sample_rate / cfg.hop)) * cfg.stride_frames
        canvas = math.ceil(frames * augment.fastest) * fe.hop_length + fe.n_fft - fe.hop_length
    else:
        canvas = max(int(lengths.max()), math.ceil(cfg.receptive_samples * augment.fastest) + fe.hop_length)
        frames = (canvas - fe.n_fft) // fe.hop_length + 1
    drawn = draw(augment, lengths, canvas, fe.n_mels, frames, generator, len(sounds.beds) if sounds.beds else 0)
    if not stream:
        frames = max(cfg.receptive_frames, int(heard_frames(cfg, drawn).max()))
    fresh = torch.rand(rows, generator=generator) < recipe.stream.fresh
    clips = cut(sounds.clips, which, drawn.start, drawn.keep, drawn.offset, canvas)
    beds = seconds = torch.zeros(0, canvas, dtype=torch.int16)
    bed_rows = second_rows = torch.zeros(0, dtype=torch.long)
    if sounds.beds:
        wanted = torch.where(which < 0, drawn.bed_gain > 0, drawn.background_db.isfinite()).nonzero()[:, 0]
        both = (drawn.second_gain[wanted] > 0).nonzero()[:, 0]
        beds = cut_bed(sounds.beds, drawn.bed[wanted], drawn.bed_at[wanted], canvas)
        seconds = cut_bed(sounds.beds, drawn.second[wanted[both]], drawn.second_at[wanted[both]], canvas)
        bed_rows, second_rows = _rows(wanted, cfg.channels), _rows(both, cfg.channels)
    return Batch(clips, beds, bed_rows, seconds, second_rows, target, fresh, drawn, frames, cfg.channels)


def _rows(examples: Tensor, channels: int) -> Tensor:
    """The rows of these examples, one a channel."""
    return (examples[:, None] * channels + torch.arange(channels)).flatten()


def cut(audio: Decoded, which: Tensor, first: Tensor, keep: Tensor, offset: Tensor, length: int) -> Tensor:
    """Parts of clips on a canvas: `keep` samples of each from its sample `first` on, placed at `offset`, zeros around them.

    which, first, keep, offset: [rows], which -1 is silence. Returns int16 [rows * channels, length].
    """
    channels = 1 if audio.samples.ndim == 1 else audio.samples.shape[1]
    out = np.zeros((len(which), channels, length), np.int16)
    for row, index, *where in zip(out, *(tensor.tolist() for tensor in (which, first, keep, offset)), strict=True):
        if index >= 0:
            start, kept, at = where
            part = audio[index][start : start + kept].reshape(-1, channels).T[:, : length - at]
            row[:, at : at + part.shape[1]] = part
    return torch.from_numpy(out.reshape(-1, length))


def cut_bed(audio: Decoded, which: Tensor, at: Tensor, length: int) -> Tensor:
    """A stretch of each background, over and over where it is short. at: [rows], 0..1 of its length. Returns like `cut`."""
    channels = 1 if audio.samples.ndim == 1 else audio.samples.shape[1]
    out = np.zeros((len(which), channels, length), np.int16)
    for row, index, share in zip(out, which.tolist(), at.tolist(), strict=True):
        bed = audio[index].reshape(-1, channels).T
        first = int(share * max(1, bed.shape[1] - length))
        bed = bed[:, first : first + length]
        for begin in range(0, length, max(1, bed.shape[1])):
            row[:, begin : begin + bed.shape[1]] = bed[:, : length - begin]
    return torch.from_numpy(out.reshape(-1, length))


def heard_frames(cfg: Cfg, drawn: Draw) -> Tensor:
    """The valid frames of each clip after its crop and stretch, [clips]."""
    fe = cfg.frontend
    return (torch.clamp((drawn.keep - fe.n_fft) // fe.hop_length + 1, min=1) / drawn.rate).long().clamp(min=1)


def mix(batch: Batch, frontend: Frontend) -> tuple[Tensor, Tensor]:
    """The sound of a batch, [rows * channels, canvas], and where each clip sounds in it, by frame."""
    drawn = batch.drawn.for_channels(batch.channels)
    beds = batch.beds / FULL_SCALE
    beds.index_add_(0, batch.second_rows, batch.seconds * (drawn.second_gain[batch.bed_rows[batch.second_rows], None] / FULL_SCALE))
    clips = batch.clips / FULL_SCALE
    return place(clips, beds, batch.bed_rows, drawn, frontend.sample_rate, frontend.hop_length, batch.channels)


def hear(frontend: LogMel, batch: Batch, outputs: int) -> Heard:
    """Augment a batch, on its device. Where the mean of the whole clip is to be taken off, masks wait until it is."""
    drawn = batch.drawn.for_channels(batch.channels)
    mixed, sounding = mix(batch, frontend.frontend)
    features = frontend.bands_of_magnitude(shape(frontend.magnitude(mixed), drawn, batch.frames))
    if frontend.frontend.norm != "whiten":
        features = mask(features, drawn, 0.0 if frontend.frontend.norm == "bands" else features.mean((1, 2), keepdim=True))
    own = sounding[:: batch.channels]
    labels = one_hot(batch.target.clamp(min=0), outputs) * (batch.target >= 0)[:, None]
    partner = batch.drawn.partner
    mixed_in = ((batch.drawn.partner_gain > 0) & (batch.target >= 0))[:, None]
    return Heard(
        features=features,
        own=own,
        partner=own[partner] & mixed_in,
        labels=labels,
        partner_labels=labels[partner] * mixed_in,
    )


def rows_of(present: Tensor, batch: Batch, stride_frames: int) -> Tensor:
    """Whether a sound is there for at least half of each row: [rows, source frames] -> [rows, k] bool."""
    stretched = stretch_times(present, batch.drawn.rate, batch.frames)
    return stretched.view(len(present), -1, stride_frames).float().mean(2) >= 0.5
