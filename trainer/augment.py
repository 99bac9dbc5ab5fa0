"""Augmentation, applied: what `draw` decided is done here, on the training device; a batch can be replayed from its `Draw`.

Every example has its own parameters; nothing loops over the batch. The way of an example: `place` puts the cropped clip in a
room, mixes a second clip in, puts it on a background, adds noise and gain, loses blocks; `shape` stretches its magnitudes, shifts
their pitch and gives them another microphone's response; `restyle` and `mask` work on mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate, pad

from trainer.draw import Draw
from trainer.streams import BLOCK, CLEAR, SILENCE

ROOM_S = 0.5
"""No room's answer is computed for longer."""

LOST_S = 0.02
"""What a network microphone puts into one packet."""

SLOPE = 4
"""The order of the filters that limit a band: 24 dB an octave."""


def place(
    clips: Tensor, beds: Tensor, bed_rows: Tensor, drawn: Draw, sample_rate: int, every: int = 1, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each clip in a room, mix its partner in, put it on its background, add noise and gain.

    clips: [clips, canvas], the drawn part of each at its drawn place, zeros around it; beds: [n, canvas], the backgrounds of the
    examples bed_rows, [n]. Returns the canvas [clips, canvas] and, for every so many samples, where each clip sounds on it, its
    silent parts not counted, and where it does so clearly, both [clips, canvas / every] bool. An example without a clip (all
    zeros) is its bed at its own level. With two channels, the rows of one clip stand side by side and are as loud as they are
    together.
    """
    square = clips * clips
    local = avg_pool1d(square[:, None], BLOCK, BLOCK, ceil_mode=True)[:, 0]
    time = torch.arange(0, clips.shape[1], every, device=clips.device)
    inside = (time >= drawn.offset[:, None]) & (time < (drawn.offset + drawn.keep)[:, None])
    loudest = local.amax(1, keepdim=True)
    sounds, clear = (inside & (local > share * loudest)[:, time // BLOCK] for share in (SILENCE, CLEAR))

    def shared(power: Tensor) -> Tensor:
        return power if channels == 1 else power.view(-1, channels).mean(1).repeat_interleave(channels)

    power = shared(square.sum(1) / drawn.keep)
    loudness = power.sqrt()
    clips = reverberate(clips, drawn, sample_rate)
    partner_gain = drawn.partner_gain * (loudness / loudness[drawn.partner].clamp_min(1e-4)).clamp(max=100)
    pairs = ((partner_gain > 0) & (power > 0)).nonzero()[:, 0]
    mixed = clips.index_add(0, pairs, clips[drawn.partner[pairs]] * partner_gain[pairs, None])

    bed_power = shared(torch.zeros_like(power).index_copy_(0, bed_rows, beds.square().mean(1)))
    bed_gain = ((power / bed_power.clamp_min(1e-9)).sqrt() * 10 ** (-drawn.background_db / 20)).clamp(max=100)
    mixed.index_add_(0, bed_rows, beds * torch.where(power > 0, bed_gain, 1.0)[bed_rows, None])

    level = torch.where(power > 0, power, bed_power).sqrt() * 10 ** (-drawn.noise_db / 20) + drawn.noise_std
    noisy = level.nonzero()[:, 0]
    generator = torch.Generator(device=clips.device).manual_seed(drawn.seed)
    noise = torch.randn(len(noisy), clips.shape[1], generator=generator, device=clips.device)
    mixed.index_add_(0, noisy, noise * level[noisy, None])
    mixed.mul_(drawn.gain[:, None]).clamp_(-1, 1)
    gappy = drawn.lost.nonzero()[:, 0]
    if len(gappy):
        block = round(LOST_S * sample_rate)
        chance = torch.rand(len(gappy) // channels, -(-clips.shape[1] // block), generator=generator, device=clips.device)
        lost = chance.repeat_interleave(channels, dim=0) < drawn.lost[gappy, None]
        mixed[gappy] = mixed[gappy].masked_fill_(lost.repeat_interleave(block, dim=1)[:, : clips.shape[1]], 0.0)
    return mixed, sounds, clear


def reverberate(audio: Tensor, drawn: Draw, sample_rate: int) -> Tensor:
    """Put the drawn examples in a room: [clips, samples] -> the same shape, the loudness kept but for what rings past the end.

    The room's answer is the direct sound and noise that decays by 60 dB in t60_s (Polack 1988).
    """
    in_room = drawn.drr_db.isfinite().nonzero()[:, 0]
    if not len(in_room):
        return audio
    length = int(ROOM_S * sample_rate)
    generator = torch.Generator(device=audio.device).manual_seed(drawn.seed + 1)
    time_s = torch.arange(length, device=audio.device) / sample_rate
    tail = torch.randn(len(in_room), length, generator=generator, device=audio.device)
    tail = tail * 10 ** (-3 * time_s / drawn.t60_s[in_room, None])
    late_power = 10 ** (-drawn.drr_db[in_room, None] / 10)
    tail = tail * (late_power / tail.square().sum(1, keepdim=True)).sqrt()
    tail[:, 0] += 1
    answer = tail / (1 + late_power).sqrt()
    size = 1 << (audio.shape[1] + length - 1).bit_length()
    wet = torch.fft.irfft(torch.fft.rfft(audio[in_room], size) * torch.fft.rfft(answer, size), size)[:, : audio.shape[1]]
    return audio.index_copy(0, in_room, wet)


def shape(magnitude: Tensor, drawn: Draw, frames: int, sample_rate: int) -> Tensor:
    """Stretch, shift, equalise and limit the band: magnitudes [clips, bins, source frames] -> [clips, bins, frames]."""
    return equalise(shift(stretch(magnitude, drawn.rate, frames), drawn.ratio), drawn, sample_rate)


def stretch(magnitude: Tensor, rate: Tensor, frames: int) -> Tensor:
    """Phase-vocoder time stretch of magnitudes (Flanagan and Golden 1966): rate > 1 is faster, the pitch stays.

    magnitude: [clips, bins, source frames]; rate: [clips]. Returns [clips, bins, frames]: frame i is the source at i * rate,
    zero past its end. The vocoder's phases are not computed: the power spectrogram that follows does not hear them.
    """
    whole = pad(magnitude, (0, max(0, frames - magnitude.shape[2])))[:, :, :frames]
    other = (rate != 1).nonzero()[:, 0]
    if not len(other):
        return whole
    position = torch.arange(frames, device=magnitude.device) * rate[other, None]
    padded = pad(magnitude[other], (0, 2))
    below = position.long().clamp(max=magnitude.shape[2])
    part = (position - below).clamp(0, 1)[:, None]
    index = below[:, None].expand(-1, magnitude.shape[1], -1)
    return whole.index_copy(0, other, torch.lerp(padded.gather(2, index), padded.gather(2, index + 1), part))


def stretch_times(present: Tensor, rate: Tensor, frames: int) -> Tensor:
    """What `stretch` does to a flag per frame: [clips, source frames] bool -> [clips, frames] bool."""
    position = (torch.arange(frames, device=present.device) * rate[:, None]).long()
    return pad(present, (0, 1)).gather(1, position.clamp(max=present.shape[1]))


def shift(magnitude: Tensor, ratio: Tensor) -> Tensor:
    """Pitch shift of magnitudes: bin k is the source's bin k / ratio, zero past its highest; the tempo stays.

    magnitude: [clips, bins, frames]; ratio: [clips], 2 is an octave up. A resampling of the spectrum, right for the few semitones
    of an augmentation: a partial of f Hz is one of ratio * f Hz, as wide as it was times ratio.
    """
    moved = (ratio != 1).nonzero()[:, 0]
    if not len(moved):
        return magnitude
    bins = magnitude.shape[1]
    position = torch.arange(bins, device=magnitude.device) / ratio[moved, None]
    padded = pad(magnitude[moved], (0, 0, 0, 2))
    below = position.long().clamp(max=bins)
    part = (position - below).clamp(0, 1)[..., None]
    index = below[..., None].expand(-1, -1, magnitude.shape[2])
    return magnitude.index_copy(0, moved, torch.lerp(padded.gather(1, index), padded.gather(1, index + 1), part))


def equalise(magnitude: Tensor, drawn: Draw, sample_rate: int) -> Tensor:
    """Give each example its own frequency response and band: [clips, bins, frames] -> the same shape."""
    bins = magnitude.shape[1]
    curve_db = interpolate(drawn.eq_db[:, None], size=bins, mode="linear", align_corners=True)[:, 0]
    hz = torch.linspace(0, sample_rate / 2, bins, device=magnitude.device)
    below = 1 + (drawn.low_hz[:, None] / hz.clamp_min(1.0)) ** (2 * SLOPE)
    above = 1 + (hz / drawn.high_hz[:, None]) ** (2 * SLOPE)
    return magnitude * (10 ** (curve_db / 20) / (below * above).sqrt())[..., None]


def restyle(features: Tensor, drawn: Draw) -> Tensor:
    """Move the mean and deviation of each band towards another example's: [clips, n_mels, frames] -> the same shape."""
    moved = (drawn.style_own < 1).nonzero()[:, 0]
    if not len(moved):
        return features
    mean, deviation = features.mean(2, keepdim=True), features.std(2, keepdim=True).clamp_min(1e-3)
    own, other = drawn.style_own[moved, None, None], drawn.style_of[moved]
    plain = (features[moved] - mean[moved]) / deviation[moved]
    styled = plain * torch.lerp(deviation[other], deviation[moved], own) + torch.lerp(mean[other], mean[moved], own)
    return features.index_copy(0, moved, styled)


def mask(features: Tensor, drawn: Draw, fill: Tensor | float = 0.0) -> Tensor:
    """SpecAugment (Park et al. 2019): one run of bands and one of frames become `fill`. features: [clips, n_mels, frames]."""
    bands = torch.arange(features.shape[1], device=features.device)[None, :, None]
    frames = torch.arange(features.shape[2], device=features.device)[None, None, :]

    def inside(axis: Tensor, first: Tensor, count: Tensor) -> Tensor:
        return (axis >= first[:, None, None]) & (axis < (first + count)[:, None, None])

    masked = inside(bands, drawn.band, drawn.bands) | inside(frames, drawn.frame, drawn.frames)
    return features.masked_fill(masked, fill) if isinstance(fill, float) else torch.where(masked, fill, features)
