"""What the network hears in a step: `prepare` plans a batch and fetches its sound, `hear` augments it on the training device.

A batch depends on its clips and a seeded generator alone, so that a step can be prepared ahead, replayed, and resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from trainer.augment import mask, place, restyle, shape, stretch_times
from trainer.cfg import Cfg
from trainer.data import FULL_SCALE, Decoded
from trainer.draw import Augmentation, Draw, draw
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
    """clips: int16 [rows * channels, canvas]; beds: int16, the backgrounds or soundscapes of the rows bed_rows; target: [rows], -1
    where a row has no clip; active, faint: [rows, k, labels] bool, what sounds in a soundscape, and where that is not to be judged;
    fresh: [rows], those that start anew; frames: of the spectrogram of each example."""

    clips: Tensor
    beds: Tensor
    bed_rows: Tensor
    target: Tensor
    active: Tensor
    faint: Tensor
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
        return replace(self, clips=self.clips.pin_memory(), beds=self.beds.pin_memory())


@dataclass(frozen=True)
class Passage:
    """What a row of soundscapes hears in one step: audio, int16 [canvas]; active, faint, [frames, labels]
    bool; seed, of the whole soundscape, whose microphone stays the same; begins, whether it is its first."""

    audio: NDArray[np.int16]
    active: NDArray[np.bool_]
    faint: NDArray[np.bool_]
    seed: int
    begins: bool


@dataclass(frozen=True)
class Heard:
    """features: [rows * channels, n_mels, frames]; labels: [rows, labels], the clip's own and its partner's where it has one;
    own, partner: [rows, source frames], where the clip and the one mixed in sound, and where they do clearly (*_clear), `rate` not
    yet applied."""

    features: Tensor
    own: Tensor
    partner: Tensor
    own_clear: Tensor
    partner_clear: Tensor
    labels: Tensor
    partner_labels: Tensor


def frames_of(cfg: Cfg, recipe: Recipe) -> tuple[int, int]:
    """The frames a row of a stream hears in a step, and the samples of its canvas, which a stretch may read more of."""
    fe = cfg.frontend
    frames = max(1, round(recipe.stream.canvas_s * fe.sample_rate / cfg.hop)) * cfg.stride_frames
    return frames, math.ceil(frames * recipe.augment.fastest) * fe.hop_length + fe.n_fft - fe.hop_length


def prepare(
    cfg: Cfg,
    recipe: Recipe,
    sounds: Sounds,
    chosen: Tensor,
    rows: int,
    generator: torch.Generator,
    passages: Sequence[Passage] = (),
) -> Batch:
    """Plan a batch of `rows` rows with the chosen clips in some of them and these passages of soundscapes in the last ones.

    Streams hear a canvas of one length, clips their own.
    """
    fe, augment = cfg.frontend, recipe.augment
    stream = recipe.train.loss == "stream"
    seats = torch.randperm(rows - len(passages), generator=generator)[: len(chosen)] if stream else torch.arange(rows)
    which, lengths, target = torch.full((rows,), -1), torch.ones(rows, dtype=torch.long), torch.full((rows,), -1)
    starts = torch.from_numpy(sounds.clips.starts)
    which[seats], lengths[seats], target[seats] = chosen, starts[chosen + 1] - starts[chosen], sounds.targets[chosen]
    if stream:
        frames, canvas = frames_of(cfg, recipe)
    else:
        canvas = max(int(lengths.max()), math.ceil(cfg.receptive_samples * augment.fastest) + fe.hop_length)
        frames = (canvas - fe.n_fft) // fe.hop_length + 1
    drawn = draw(augment, lengths, canvas, fe.n_mels, frames, generator, len(sounds.beds) if sounds.beds else 0)
    if not stream:
        frames = max(cfg.receptive_frames, int(heard_frames(cfg, drawn).max()))
    fresh = torch.rand(rows, generator=generator) < recipe.stream.fresh
    clips = cut(sounds.clips, which, drawn.start, drawn.keep, drawn.offset, canvas)
    beds, with_bed = torch.zeros(0, canvas, dtype=torch.int16), torch.zeros(0, dtype=torch.long)
    if sounds.beds:
        with_bed = ((which >= 0) & drawn.background_db.isfinite()).nonzero()[:, 0]
        beds = cut_bed(sounds.beds, drawn.bed[with_bed], drawn.bed_at[with_bed], canvas)
    active = torch.zeros(rows, frames // cfg.stride_frames if stream else 0, cfg.outputs, dtype=torch.bool)
    faint = torch.zeros_like(active)
    if passages:
        last = torch.arange(rows - len(passages), rows)
        heard = torch.from_numpy(np.stack([passage.audio for passage in passages]))
        beds, with_bed = torch.cat([beds, heard.repeat_interleave(cfg.channels, dim=0)]), torch.cat([with_bed, last])
        for rows_are, frames_are in ((active, [p.active for p in passages]), (faint, [p.faint for p in passages])):
            each = torch.from_numpy(np.stack(frames_are)).view(len(last), -1, cfg.stride_frames, cfg.outputs)
            rows_are[last] = each.float().mean(2) >= 0.5
        begins = torch.tensor([passage.begins for passage in passages])
        fresh[last] &= begins
        drawn = _one_microphone(drawn, [passage.seed for passage in passages], augment, canvas, fe.n_mels, frames)
    return Batch(clips, beds, _rows(with_bed, cfg.channels), target, active, faint, fresh, drawn, frames, cfg.channels)


def _one_microphone(drawn: Draw, seeds: Sequence[int], augment: Augmentation, canvas: int, n_mels: int, frames: int) -> Draw:
    """Let the last rows keep what belongs to a place and its microphone for a whole soundscape, and nothing that would cut it."""
    one = torch.tensor([canvas])
    scenes = [draw(augment, one, canvas, n_mels, frames, torch.Generator().manual_seed(seed)) for seed in seeds]
    kept: dict[str, Any] = {
        name: torch.cat([getattr(drawn, name)[: -len(seeds)], *(getattr(scene, name) for scene in scenes)])
        for name in ("gain", "ratio", "eq_db", "low_hz", "high_hz", "lost")
    }
    off = {"rate": 1.0, "style_own": 1.0, "partner_gain": 0.0, "noise_std": 0.0}
    off |= dict.fromkeys(("drr_db", "background_db", "noise_db"), torch.inf)
    for name, value in off.items():
        kept[name] = getattr(drawn, name).clone()
        kept[name][-len(seeds) :] = value
    return replace(drawn, **kept)


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


def mix(batch: Batch, frontend: Frontend) -> tuple[Tensor, Tensor, Tensor]:
    """The sound of a batch, [rows * channels, canvas], and where each clip sounds in it, and clearly so, by frame."""
    drawn = batch.drawn.for_channels(batch.channels)
    clips, beds = batch.clips / FULL_SCALE, batch.beds / FULL_SCALE
    return place(clips, beds, batch.bed_rows, drawn, frontend.sample_rate, frontend.hop_length, batch.channels)


def hear(frontend: LogMel, batch: Batch, outputs: int) -> Heard:
    """Augment a batch, on its device. Where the mean of the whole clip is to be taken off, masks wait until it is."""
    drawn = batch.drawn.for_channels(batch.channels)
    mixed, sounding, clearly = mix(batch, frontend.frontend)
    shaped = shape(frontend.magnitude(mixed), drawn, batch.frames, frontend.frontend.sample_rate)
    features = restyle(frontend.bands_of_magnitude(shaped), drawn)
    if frontend.frontend.norm != "whiten":
        features = mask(features, drawn, 0.0 if frontend.frontend.norm == "bands" else features.mean((1, 2), keepdim=True))
    own, clear = sounding[:: batch.channels], clearly[:: batch.channels]
    labels = one_hot(batch.target.clamp(min=0), outputs) * (batch.target >= 0)[:, None]
    partner = batch.drawn.partner
    mixed_in = ((batch.drawn.partner_gain > 0) & (batch.target >= 0))[:, None]
    return Heard(
        features=features,
        own=own,
        partner=own[partner] & mixed_in,
        own_clear=clear,
        partner_clear=clear[partner] & mixed_in,
        labels=labels,
        partner_labels=labels[partner] * mixed_in,
    )


def rows_of(present: Tensor, batch: Batch, stride_frames: int) -> Tensor:
    """Whether a sound is there for at least half of each row: [rows, source frames] -> [rows, k] bool."""
    stretched = stretch_times(present, batch.drawn.rate, batch.frames)
    return stretched.view(len(present), -1, stride_frames).float().mean(2) >= 0.5
