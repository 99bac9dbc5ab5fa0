"""Augmentation in two halves: `draw` decides, from a seeded generator, `place`, `stretch` and `mask` do, on the training device.

A batch can be replayed from its `Draw`. Every example has its own parameters; nothing loops over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate


@dataclass(frozen=True)
class Augmentation:
    """How often and how far. Probabilities are per example; (low, high) are uniform ranges.

    crop: keep 1 - |N(0, crop)| of the clip. late: start the clip up to half a canvas late. background, noise: signal to noise
    ratio in dB. mixup: level of the second clip in dB. stretch: a rate of 1 +- stretch. eq: deviation of a
    smooth random frequency response, another microphone's or another street's, in dB. mask: at most so many bands and frames.
    """

    crop_p: float = 0.4
    crop: float = 0.25
    late_p: float = 0.5
    gain_db: tuple[float, float] = (-24.0, 6.0)
    background_p: float = 0.6
    background_db: tuple[float, float] = (0.0, 30.0)
    noise_p: float = 0.3
    noise_db: tuple[float, float] = (5.0, 40.0)
    mixup_p: float = 0.3
    mixup_db: tuple[float, float] = (-12.0, 3.0)
    stretch_p: float = 0.5
    stretch: float = 0.25
    eq_db: float = 4.0
    mask_p: float = 0.5
    mask_bands: int = 10
    mask_frames: int = 16


LOCAL, SILENCE = 1024, 1e-3
"""A stretch of so many samples more than 30 dB below its clip's loudest one is silence: a bark is not the pause after it."""

EQ_POINTS = 5
"""Evenly spaced over the spectrum, straight lines in dB between them."""

NONE = Augmentation(crop_p=0, late_p=0, gain_db=(0, 0), background_p=0, noise_p=0, mixup_p=0, stretch_p=0, eq_db=0, mask_p=0)


@dataclass(frozen=True)
class Draw:
    """What happens to each example of a batch: every field is [clips], but `eq_db` [clips, EQ_POINTS], and `seed` of the noise."""

    start: Tensor
    keep: Tensor
    offset: Tensor
    gain: Tensor
    background_db: Tensor
    noise_db: Tensor
    partner: Tensor
    partner_gain: Tensor
    rate: Tensor
    eq_db: Tensor
    band: Tensor
    bands: Tensor
    frame: Tensor
    frames: Tensor
    seed: int

    def to(self, device: torch.device) -> Draw:
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "seed"}
        return Draw(**tensors, seed=self.seed)


def draw(how: Augmentation, samples: Tensor, canvas: int, n_mels: int, frames: int, generator: torch.Generator) -> Draw:
    """Decide for a batch of clips with these lengths, to be placed on a canvas of so many samples."""
    count = len(samples)

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def chance(p: float) -> Tensor:
        return torch.rand(count, generator=generator) < p

    keep_share = torch.where(chance(how.crop_p), 1 - how.crop * torch.randn(count, generator=generator).abs(), 1.0).clamp(0.1, 1)
    keep = (samples * keep_share).long().clamp(min=1).minimum(torch.tensor(canvas))
    start = (uniform() * (samples - keep + 1)).long().minimum(samples - keep)
    room = (canvas - keep).maximum(torch.tensor(canvas // 2)) * chance(how.late_p)
    bands = (uniform(0, how.mask_bands + 1) * chance(how.mask_p)).long()
    masked = (uniform(0, how.mask_frames + 1) * chance(how.mask_p)).long()
    silent = torch.tensor(torch.inf)
    return Draw(
        start=start,
        keep=keep,
        offset=(uniform() * room).long(),
        gain=10 ** (uniform(*how.gain_db) / 20) * torch.where(chance(0.5), 1.0, -1.0),
        background_db=torch.where(chance(how.background_p), uniform(*how.background_db), silent),
        noise_db=torch.where(chance(how.noise_p), uniform(*how.noise_db), silent),
        partner=torch.randperm(count, generator=generator),
        partner_gain=torch.where(chance(how.mixup_p), 10 ** (uniform(*how.mixup_db) / 20), 0.0),
        rate=torch.where(chance(how.stretch_p), uniform(1 - how.stretch, 1 + how.stretch), 1.0),
        eq_db=how.eq_db * torch.randn(count, EQ_POINTS, generator=generator),
        band=(uniform() * (n_mels - bands + 1)).long(),
        bands=bands,
        frame=(uniform() * (frames - masked + 1)).long(),
        frames=masked,
        seed=int(torch.randint(1 << 31, (1,), generator=generator)),
    )


def place(audio: Tensor, beds: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Cut each clip, put it on its background, mix its partner in, add noise and gain.

    audio: [clips, longest]; beds: [clips, canvas], zeros where there is none. Returns the canvas [clips, canvas] and where each
    clip sounds on it, its silent parts not counted, [clips, canvas] bool. An example without a clip (all zeros) is its bed at its
    own level.
    """
    time = torch.arange(beds.shape[1], device=beds.device)
    sounds = (time >= drawn.offset[:, None]) & (time < (drawn.offset + drawn.keep)[:, None])
    source = (time - drawn.offset[:, None] + drawn.start[:, None]).clamp(0, audio.shape[1] - 1)
    clip = audio.gather(1, source) * sounds
    local = avg_pool1d(clip.square()[:, None], LOCAL, LOCAL, ceil_mode=True)[:, 0]
    audible = local > SILENCE * local.amax(1, keepdim=True)
    sounds = sounds & audible.repeat_interleave(LOCAL, dim=1)[:, : sounds.shape[1]]
    power = clip.square().sum(1) / drawn.keep
    loudness = power.sqrt()
    partner_gain = drawn.partner_gain * (loudness / loudness[drawn.partner].clamp_min(1e-4)).clamp(max=100)
    mixed = clip + clip[drawn.partner] * torch.where(power > 0, partner_gain, 0.0)[:, None]
    bed_power = beds.square().mean(1)
    bed_gain = (power / bed_power.clamp_min(1e-9)).sqrt() * 10 ** (-drawn.background_db / 20)
    mixed = mixed + beds * torch.where(power > 0, bed_gain.clamp(max=100), 1.0)[:, None]
    total = torch.where(power > 0, power, bed_power).sqrt()
    generator = torch.Generator(device=beds.device).manual_seed(drawn.seed)
    noise = torch.randn(beds.shape, generator=generator, device=beds.device)
    mixed = mixed + noise * (total * 10 ** (-drawn.noise_db / 20))[:, None]
    return (mixed * drawn.gain[:, None]).clamp(-1, 1), sounds


def stretch(magnitude: Tensor, rate: Tensor, frames: int) -> Tensor:
    """Phase-vocoder time stretch of magnitudes (Flanagan and Golden 1966): rate > 1 is faster, the pitch stays.

    magnitude: [clips, bins, source frames]; rate: [clips]. Returns [clips, bins, frames]: frame i is the source at i * rate,
    zero past its end. The vocoder's phases are not computed: the power spectrogram that follows does not hear them.
    """
    position = torch.arange(frames, device=magnitude.device) * rate[:, None]
    padded = torch.nn.functional.pad(magnitude, (0, 2))
    below = position.floor().long().clamp(max=magnitude.shape[2])
    part = (position - below).clamp(0, 1)[:, None]
    index = below[:, None].expand(-1, magnitude.shape[1], -1)
    return padded.gather(2, index) * (1 - part) + padded.gather(2, index + 1) * part


def stretch_times(present: Tensor, rate: Tensor, frames: int) -> Tensor:
    """What `stretch` does to a flag per frame: [clips, source frames] bool -> [clips, frames] bool."""
    position = (torch.arange(frames, device=present.device) * rate[:, None]).long()
    return torch.nn.functional.pad(present, (0, 1)).gather(1, position.clamp(max=present.shape[1]))


def equalise(magnitude: Tensor, drawn: Draw) -> Tensor:
    """Give each example its own frequency response: [clips, bins, frames] -> the same shape."""
    curve_db = interpolate(drawn.eq_db[:, None], size=magnitude.shape[1], mode="linear", align_corners=True)[:, 0]
    return magnitude * (10 ** (curve_db / 20))[..., None]


def mask(features: Tensor, drawn: Draw) -> Tensor:
    """SpecAugment (Park et al. 2019): one run of bands and one of frames set to zero. features: [clips, n_mels, frames]."""
    bands = torch.arange(features.shape[1], device=features.device)[None, :, None]
    frames = torch.arange(features.shape[2], device=features.device)[None, None, :]

    def inside(axis: Tensor, first: Tensor, count: Tensor) -> Tensor:
        return (axis >= first[:, None, None]) & (axis < (first + count)[:, None, None])

    return features.masked_fill(inside(bands, drawn.band, drawn.bands) | inside(frames, drawn.frame, drawn.frames), 0.0)
