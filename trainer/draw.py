"""What may be done to an example, how often and how far; and `draw`, which decides it for a batch from a seeded generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """Keep 1 - |N(0, sigma)| of the clip, from a random place."""

    p: float
    sigma: float = 0.25


@dataclass(frozen=True)
class Late:
    """Start the clip up to half a canvas late. For streams."""

    p: float


@dataclass(frozen=True)
class Gain:
    """Make the whole example louder or quieter by so many dB."""

    p: float
    db: tuple[float, float] = (-24.0, 6.0)


@dataclass(frozen=True)
class Polarity:
    """Turn the wave upside down."""

    p: float


@dataclass(frozen=True)
class Reverb:
    """A short synthetic room: decaying noise that has fallen by 60 dB after t60_s, drr_db below the direct sound."""

    p: float
    t60_s: tuple[float, float] = (0.1, 0.5)
    drr_db: tuple[float, float] = (0.0, 15.0)


@dataclass(frozen=True)
class Mixup:
    """Add a second clip of the batch, so many dB above the first; both labels hold."""

    p: float
    db: tuple[float, float] = (-12.0, 3.0)


@dataclass(frozen=True)
class Background:
    """Put the clip on a background, so many dB below the clip."""

    p: float
    snr_db: tuple[float, float] = (0.0, 30.0)


@dataclass(frozen=True)
class Noise:
    """Add white noise, so many dB below the clip; or, with std, of this standard deviation whatever the clip's level."""

    p: float
    snr_db: tuple[float, float] = (5.0, 40.0)
    std: float = 0.0


@dataclass(frozen=True)
class Stretch:
    """Play at this rate, the pitch kept (phase vocoder); more than 1 is faster."""

    p: float
    rate: tuple[float, float] = (0.75, 1.25)


@dataclass(frozen=True)
class Pitch:
    """Shift the pitch by so many semitones, the tempo kept."""

    p: float
    semitones: tuple[float, float] = (-2.0, 2.0)


@dataclass(frozen=True)
class Eq:
    """A smooth random frequency response, another microphone's or another street's, of this standard deviation in dB."""

    p: float
    db: float = 4.0


@dataclass(frozen=True)
class Band:
    """Another microphone's or a telephone's band: cut what lies below and above two frequencies (Butterworth, 24 dB an octave)."""

    p: float
    low_hz: tuple[float, float] = (20.0, 400.0)
    high_hz: tuple[float, float] = (3000.0, 12000.0)


@dataclass(frozen=True)
class Lost:
    """Lose up to this share of the blocks of 20 ms: silence in their place, as a network microphone conceals them."""

    p: float
    share: float = 0.15


@dataclass(frozen=True)
class Style:
    """MixStyle along frequency (Zhou et al. 2021, Kim et al. 2022): move a clip's mean and deviation per band towards another's.

    own is the clip's own share of them.
    """

    p: float
    own: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True)
class Mask:
    """SpecAugment: one run of at most so many bands, and with the same chance one of at most so many frames, set to zero."""

    p: float
    bands: int = 10
    frames: int = 16


@dataclass(frozen=True)
class Augmentation:
    """What is done to examples: how often (p, per example) and how far (low, high: uniform). What is not given is off."""

    crop: Crop = Crop(0.0)
    late: Late = Late(0.0)
    gain: Gain = Gain(0.0)
    polarity: Polarity = Polarity(0.0)
    reverb: Reverb = Reverb(0.0)
    mixup: Mixup = Mixup(0.0)
    background: Background = Background(0.0)
    noise: Noise = Noise(0.0)
    stretch: Stretch = Stretch(0.0)
    pitch: Pitch = Pitch(0.0)
    eq: Eq = Eq(0.0)
    band: Band = Band(0.0)
    lost: Lost = Lost(0.0)
    style: Style = Style(0.0)
    mask: Mask = Mask(0.0)

    @property
    def fastest(self) -> float:
        """The highest rate a stretch may play at."""
        return max(1.0, self.stretch.rate[1]) if self.stretch.p else 1.0


EQ_POINTS = 5
"""Evenly spaced over the spectrum, straight lines in dB between them."""

OFF = torch.tensor(torch.inf)
"""A level of -inf dB below: not there."""


@dataclass(frozen=True)
class Draw:
    """What happens to each example of a batch: every field is [clips], but `eq_db` [clips, EQ_POINTS], and `seed` of the noises.

    start, keep: the part of the clip that stays, in samples; offset: where it begins on the canvas; *_db: so far below the clip,
    inf is off; partner, bed: the clip mixed in and the background; bed_at: 0..1 of its length; style_own: the share of its own.
    """

    start: Tensor
    keep: Tensor
    offset: Tensor
    gain: Tensor
    t60_s: Tensor
    drr_db: Tensor
    partner: Tensor
    partner_gain: Tensor
    bed: Tensor
    bed_at: Tensor
    background_db: Tensor
    noise_db: Tensor
    noise_std: Tensor
    rate: Tensor
    ratio: Tensor
    eq_db: Tensor
    low_hz: Tensor
    high_hz: Tensor
    lost: Tensor
    style_own: Tensor
    style_of: Tensor
    band: Tensor
    bands: Tensor
    frame: Tensor
    frames: Tensor
    seed: int

    def to(self, device: torch.device | str) -> Draw:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def for_channels(self, channels: int) -> Draw:
        """The draw of clips of so many channels, each a row: every channel of a clip is treated alike."""
        if channels == 1:
            return self
        each = self._each(lambda tensor: tensor.repeat_interleave(channels, dim=0))
        channel = torch.arange(len(each.partner), device=each.partner.device) % channels
        return replace(each, partner=each.partner * channels + channel, style_of=each.style_of * channels + channel)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draw:
        return Draw(**{f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "seed"}, seed=self.seed)


def draw(
    how: Augmentation, samples: Tensor, canvas: int, n_mels: int, frames: int, generator: torch.Generator, beds: int = 0
) -> Draw:
    """Decide for clips of these lengths, to be placed on a canvas of so many samples, with so many backgrounds to choose from."""
    count = len(samples)

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def chance(p: float) -> Tensor:
        return torch.rand(count, generator=generator) < p

    def pick(choices: int) -> Tensor:
        return (uniform() * choices).long()

    kept = torch.where(chance(how.crop.p), 1 - how.crop.sigma * torch.randn(count, generator=generator).abs(), 1.0).clamp(0.1, 1)
    keep = (samples * kept).long().clamp(min=1).minimum(torch.tensor(canvas))
    start = pick(1 << 20) * (samples - keep).clamp(min=0) >> 20
    room = (canvas - keep).maximum(torch.tensor(canvas // 2)) * chance(how.late.p)
    bands = (uniform(0, how.mask.bands + 1) * chance(how.mask.p)).long()
    masked = (uniform(0, how.mask.frames + 1) * chance(how.mask.p)).long()
    noisy, limited = chance(how.noise.p), chance(how.band.p)
    return Draw(
        start=start,
        keep=keep,
        offset=(uniform() * room).long(),
        gain=10 ** (uniform(*how.gain.db) * chance(how.gain.p) / 20) * torch.where(chance(how.polarity.p), -1.0, 1.0),
        t60_s=uniform(*how.reverb.t60_s),
        drr_db=torch.where(chance(how.reverb.p), uniform(*how.reverb.drr_db), OFF),
        partner=torch.randperm(count, generator=generator),
        partner_gain=torch.where(chance(how.mixup.p), 10 ** (uniform(*how.mixup.db) / 20), 0.0),
        bed=pick(max(1, beds)),
        bed_at=uniform(),
        background_db=torch.where(chance(how.background.p), uniform(*how.background.snr_db), OFF),
        noise_db=torch.where(noisy & (how.noise.std == 0), uniform(*how.noise.snr_db), OFF),
        noise_std=noisy * how.noise.std,
        rate=torch.where(chance(how.stretch.p), uniform(*how.stretch.rate), 1.0),
        ratio=torch.where(chance(how.pitch.p), 2 ** (uniform(*how.pitch.semitones) / 12), 1.0),
        eq_db=how.eq.db * torch.randn(count, EQ_POINTS, generator=generator) * chance(how.eq.p)[:, None],
        low_hz=uniform(*map(math.log, how.band.low_hz)).exp() * limited,
        high_hz=torch.where(limited, uniform(*map(math.log, how.band.high_hz)).exp(), OFF),
        lost=uniform(0, how.lost.share) * chance(how.lost.p),
        style_own=torch.where(chance(how.style.p), uniform(*how.style.own), 1.0),
        style_of=torch.randperm(count, generator=generator),
        band=(uniform() * (n_mels - bands + 1)).long(),
        bands=bands,
        frame=(uniform() * (frames - masked + 1)).long(),
        frames=masked,
        seed=int(torch.randint(1 << 31, (1,), generator=generator)),
    )
