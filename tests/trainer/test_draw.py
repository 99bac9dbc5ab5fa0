from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.draw import (
    Augmentation,
    Background,
    Band,
    Crop,
    Draw,
    Eq,
    Gain,
    Late,
    Lost,
    Mask,
    Mixup,
    Noise,
    Pitch,
    Polarity,
    Reverb,
    Stretch,
    Style,
    draw,
)

MANY, SAMPLES, CANVAS, MELS, FRAMES = 20_000, 3000, 4000, 16, 40
PROBABILITY = st.floats(0, 1)


def of_range(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda ends: tuple(sorted(ends)))


HOW = st.builds(
    Augmentation,
    st.builds(Crop, PROBABILITY, st.floats(0, 3)),
    st.builds(Late, PROBABILITY),
    st.builds(Gain, PROBABILITY, of_range(-60, 20)),
    st.builds(Polarity, PROBABILITY),
    st.builds(Reverb, PROBABILITY, of_range(0.01, 10), of_range(-10, 40)),
    st.builds(Mixup, PROBABILITY, of_range(-40, 20)),
    st.builds(Background, PROBABILITY, of_range(-20, 60)),
    st.builds(Noise, PROBABILITY, of_range(-20, 60), st.sampled_from([0.0, 0.01])),
    st.builds(Stretch, PROBABILITY, of_range(0.01, 4)),
    st.builds(Pitch, PROBABILITY, of_range(-12, 12)),
    st.builds(Eq, PROBABILITY, st.floats(0, 12)),
    st.builds(Band, PROBABILITY, of_range(1, 1000), of_range(1000, 1e6)),
    st.builds(Lost, PROBABILITY, PROBABILITY),
    st.builds(Style, PROBABILITY, of_range(0, 1)),
    st.builds(Mask, PROBABILITY, st.integers(0, MELS), st.integers(0, FRAMES)),
)


def drawn(how, count=MANY, seed=1, **others):
    generator = torch.Generator().manual_seed(seed)
    return draw(how, torch.full((count,), SAMPLES), CANVAS, MELS, FRAMES, generator, **others)


ON = {
    "crop": (Crop(0.3), lambda d: d.keep < SAMPLES),
    "late": (Late(0.3), lambda d: d.offset > 0),
    "gain": (Gain(0.3), lambda d: d.gain != 1),
    "polarity": (Polarity(0.3), lambda d: d.gain < 0),
    "reverb": (Reverb(0.3), lambda d: d.drr_db.isfinite()),
    "mixup": (Mixup(0.3), lambda d: d.partner_gain > 0),
    "background": (Background(0.3), lambda d: d.background_db.isfinite()),
    "noise": (Noise(0.3), lambda d: d.noise_db.isfinite() & (d.noise_std == 0)),
    "noise of a deviation": (Noise(0.3, std=0.1), lambda d: (d.noise_std == 0.1) & d.noise_db.isinf()),
    "stretch": (Stretch(0.3), lambda d: d.rate != 1),
    "pitch": (Pitch(0.3), lambda d: d.ratio != 1),
    "eq": (Eq(0.3), lambda d: d.eq_db.any(1)),
    "band": (Band(0.3), lambda d: (d.low_hz > 0) & d.high_hz.isfinite()),
    "lost": (Lost(0.3), lambda d: d.lost > 0),
    "style": (Style(0.3), lambda d: d.style_own < 1),
    "mask": (Mask(0.3 * 11 / 10, 10, 0), lambda d: d.bands > 0),  # one of 11 widths is none
}


@pytest.mark.parametrize("name", ON)
def test_as_many_examples_are_touched_as_the_probability_says(name):
    setting, touched = ON[name]
    share = touched(drawn(replace(Augmentation(), **{name.split()[0]: setting}))).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.015)


def test_every_augmentation_is_tested():
    assert {name.split()[0] for name in ON} == {each.name for each in fields(Augmentation)}


@settings(max_examples=60, deadline=None)
@given(
    HOW, st.lists(st.integers(0, 100_000), min_size=1, max_size=30), st.integers(1, 50_000), st.integers(0, 9), st.integers(0, 99)
)
def test_whatever_is_drawn_is_within_its_range(how, samples, canvas, beds, seed):
    lengths = torch.tensor(samples)
    d = draw(how, lengths, canvas, MELS, FRAMES, torch.Generator().manual_seed(seed), beds)
    assert (d.start >= 0).all()
    assert (d.start + d.keep <= lengths.clamp(min=1)).all()
    assert ((d.keep >= 1) & (d.keep <= canvas)).all()
    assert ((d.offset >= 0) & (d.offset <= torch.maximum(canvas - d.keep, torch.tensor(canvas // 2)))).all()

    def within(values, ends, *neutral):
        low, high = sorted(ends)
        inside = (values >= low - 1e-4 * abs(low) - 1e-6) & (values <= high + 1e-4 * abs(high) + 1e-6)
        for one in neutral:
            inside |= values == one
        assert inside.all()

    within(20 * d.gain.abs().log10(), how.gain.db, *(20 * torch.ones(1).log10()))
    within(d.t60_s, how.reverb.t60_s)
    within(d.drr_db, how.reverb.drr_db, torch.inf)
    within(20 * d.partner_gain.log10(), how.mixup.db, -torch.inf)
    within(d.background_db, how.background.snr_db, torch.inf)
    within(d.noise_db, how.noise.snr_db, torch.inf)
    within(d.rate, how.stretch.rate, 1)
    within(12 * d.ratio.log2(), how.pitch.semitones, 0)
    assert d.noise_std.unique().tolist() in ([0.0], [pytest.approx(how.noise.std)], [0.0, pytest.approx(how.noise.std)])
    assert (min(1.0, how.stretch.rate[0]) - 1e-6 <= d.rate).all()
    assert (d.rate <= how.fastest + 1e-6).all()
    for at, run, most, size in ((d.band, d.bands, how.mask.bands, MELS), (d.frame, d.frames, how.mask.frames, FRAMES)):
        assert ((run >= 0) & (run <= most) & (at >= 0) & (at + run <= size)).all()
    assert ((d.bed >= 0) & (d.bed < max(1, beds))).all()
    assert ((d.bed_at >= 0) & (d.bed_at < 1)).all()
    for others in (d.partner, d.style_of):
        assert sorted(others.tolist()) == list(range(len(samples)))
    within(d.low_hz, how.band.low_hz, 0)
    within(d.high_hz, how.band.high_hz, torch.inf)
    assert torch.equal(d.low_hz > 0, d.high_hz.isfinite())
    within(d.lost, (0, how.lost.share))
    within(d.style_own, how.style.own, 1)


def test_a_range_is_drawn_from_end_to_end_and_evenly():
    how = replace(Augmentation(), stretch=Stretch(1, (0.5, 1.5)), pitch=Pitch(1, (-2, 2)), band=Band(1, (10, 1000), (2000, 8000)))
    d = drawn(replace(how, lost=Lost(1, 0.2), style=Style(1, (0.5, 1)), mask=Mask(1, 3, 5)))
    ranges = [(d.rate, 0.5, 1.5), (12 * d.ratio.log2(), -2, 2), (d.lost, 0, 0.2), (d.style_own, 0.5, 1)]
    for values, low, high in (*ranges, (d.low_hz.log10(), 1, 3), (d.high_hz.log2(), 10.965784, 12.965784)):
        assert (torch.histc(values, 10, low, high) / MANY - 0.1).abs().max() < 0.01
    assert (torch.bincount(d.bands) / MANY - 1 / 4).abs().max() < 0.02
    assert (torch.bincount(d.frames) / MANY - 1 / 6).abs().max() < 0.02


def test_a_crop_begins_anywhere_in_what_is_left():
    d = drawn(replace(Augmentation(), crop=Crop(1, 0.25)))
    place = d.start / (SAMPLES - d.keep).clamp(min=1)
    assert (torch.histc(place, 10, 0, 1) / MANY - 0.1).abs().max() < 0.015
    lost = (1 - d.keep / SAMPLES)[d.keep > 0.2 * SAMPLES]
    assert float(lost.mean()) == pytest.approx(0.25 * (2 / torch.pi) ** 0.5, abs=0.01)


def test_a_generator_of_the_same_seed_draws_the_same_and_each_draw_its_own_noise():
    how = replace(Augmentation(), crop=Crop(1), eq=Eq(1))
    first, again, other = drawn(how, 9, 1), drawn(how, 9, 1), drawn(how, 9, 2)
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(Draw) if f.name != "seed")
    assert first.seed == again.seed != other.seed
    assert not torch.equal(first.start, other.start)


def test_switching_one_augmentation_off_leaves_what_is_drawn_for_the_others():
    how = Augmentation(
        Crop(0.5), stretch=Stretch(0.5), pitch=Pitch(0.5), noise=Noise(0.5), mask=Mask(0.5), band=Band(0.5), lost=Lost(0.5)
    )
    both, alone = drawn(how, 50), drawn(replace(how, stretch=Stretch(0)), 50)
    for field in ("start", "keep", "ratio", "noise_db", "low_hz", "high_hz", "lost", "band", "bands", "frame", "frames"):
        assert torch.equal(getattr(both, field), getattr(alone, field)), field


def test_both_channels_of_a_clip_are_treated_alike():
    how = Augmentation(
        *(replace(kind(p=0.5)) for kind in (Crop, Late, Gain, Polarity, Reverb, Mixup)), pitch=Pitch(0.5), style=Style(0.5)
    )
    mono = drawn(how, 20, beds=3)
    stereo = mono.for_channels(2)
    for f in fields(Draw):
        value = getattr(stereo, f.name)
        if f.name not in ("seed", "partner", "style_of"):
            assert torch.equal(value[::2], getattr(mono, f.name)), f.name
            assert torch.equal(value[1::2], getattr(mono, f.name)), f.name
    for name in ("partner", "style_of"):
        assert torch.equal(getattr(stereo, name)[::2], 2 * getattr(mono, name)), name
        assert torch.equal(getattr(stereo, name)[1::2], 2 * getattr(mono, name) + 1), name
    assert stereo.seed == mono.seed
    assert mono.for_channels(1) is mono


def test_a_draw_moves_to_a_device_whole_and_keeps_its_seed_there():
    elsewhere = drawn(Augmentation(), 4).to("meta").for_channels(2)
    assert {getattr(elsewhere, f.name).device.type for f in fields(Draw) if f.name != "seed"} == {"meta"}
    assert elsewhere.seed == drawn(Augmentation(), 4).seed
