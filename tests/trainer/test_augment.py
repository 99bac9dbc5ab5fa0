from dataclasses import replace

import pytest
import torch
import torchaudio

from trainer.augment import LOST_S, equalise, mask, place, restyle, reverberate, shape, shift, stretch, stretch_times
from trainer.draw import (
    Augmentation,
    Background,
    Band,
    Crop,
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
from trainer.frontend import LogMel
from trainer.layers import Frontend

CANVAS, MELS, FRAMES, RATE = 8000, 16, 40, 8000
NONE = Augmentation()
ALL = Augmentation(
    Crop(1),
    Late(1),
    Gain(1),
    Polarity(0.5),
    Reverb(1),
    Mixup(0),
    Background(1),
    Noise(1, std=0.01),
    Stretch(1),
    Pitch(1),
    Eq(1),
    Band(1),
    Lost(1),
    Style(0),
    Mask(1),
)
"""Everything but what mixes neighbours on purpose."""


def drawn(how, samples, seed=1):
    return draw(how, torch.tensor(samples), CANVAS, MELS, FRAMES, torch.Generator().manual_seed(seed))


def heard(clips, what, beds=None, rows=None):
    """`place` with clips and beds of any length, a bed for each of the first examples."""
    clips = torch.nn.functional.pad(clips, (0, CANVAS - clips.shape[1]))
    beds = torch.zeros(0, CANVAS) if beds is None else beds
    return place(clips, beds, torch.arange(len(beds)) if rows is None else rows, what, RATE)[:2]


def cropped(clips, what):
    """Clips as `prepare` hands them over: the drawn part of each at its drawn place."""
    out = torch.zeros(len(clips), CANVAS)
    for row, clip, start, keep, offset in zip(out, clips, what.start, what.keep, what.offset, strict=True):
        part = clip[start : start + keep][: CANVAS - offset]
        row[offset : offset + len(part)] = part
    return out


def db(ratio):
    return 10 * torch.log10(ratio)


def tone(hz, samples=CANVAS):
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(samples) / RATE)[None]


def test_a_batch_is_replayed_from_its_draw_and_another_seed_differs():
    audio, beds = torch.randn(4, 6000) * 0.1, torch.randn(4, CANVAS) * 0.1
    how = replace(ALL, mixup=Mixup(1))
    first, again, other = (heard(audio, drawn(how, [6000] * 4, seed), beds)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_clip_changes_no_example_but_its_own_and_those_it_is_mixed_into():
    frontend = LogMel(Frontend(RATE, 256, 128, MELS, 60))

    def features(clips, what):
        mixed, *_ = place(clips, beds, torch.arange(len(beds)), what, RATE)
        return mask(frontend.bands_of_magnitude(shape(frontend.magnitude(mixed), what, FRAMES, RATE)), what)

    clips, beds = torch.randn(6, CANVAS) * 0.1, torch.randn(6, CANVAS) * 0.1
    others = clips.clone()
    others[2] = torch.randn(CANVAS) * 0.05
    for how, touched in ((ALL, {2}), (replace(ALL, mixup=Mixup(1)), None)):
        what = drawn(how, [CANVAS] * 6)
        touched = touched or {2, *(what.partner == 2).nonzero().flatten().tolist()}
        before, after = features(cropped(clips, what), what), features(cropped(others, what), what)
        same = {i for i in range(6) if torch.equal(before[i], after[i])}
        assert same == set(range(6)) - touched


def test_nothing_drawn_gives_the_features_of_the_plain_clip():
    frontend = LogMel(Frontend(RATE, 256, 128, MELS, 60))
    audio, what = torch.randn(3, CANVAS) * 0.1, drawn(NONE, [CANVAS] * 3)
    mixed, sounds = heard(audio, what)
    assert torch.equal(mixed, audio)
    assert sounds.all()
    magnitude = frontend.magnitude(mixed)
    frames = magnitude.shape[2]
    assert torch.equal(shape(magnitude, what, frames, RATE), magnitude)
    features = mask(restyle(frontend.bands_of_magnitude(shape(magnitude, what, frames, RATE)), what), what)
    whole = torch.nn.functional.pad(audio, (0, -CANVAS % 128))
    torch.testing.assert_close(features, frontend(whole)[:, :, :frames], atol=1e-3, rtol=1e-3)


def test_without_augmentation_a_clip_stands_unchanged_at_the_canvas_begin():
    audio = torch.randn(1, 6000) * 0.1
    out, sounds = heard(audio, drawn(NONE, [6000]))
    assert torch.equal(out[:, :6000], audio)
    assert (out[:, 6000:] == 0).all()
    assert sounds.sum() == 6000


def test_crop_keeps_a_contiguous_part_and_marks_where_it_sounds():
    audio = 0.3 + torch.arange(6000)[None] / 100_000
    for seed in range(20):
        what = drawn(replace(NONE, crop=Crop(1), late=Late(1)), [6000], seed)
        out, sounds = heard(cropped(audio, what), what)
        part = (out[sounds] - 0.3) * 100_000
        assert (out[~sounds] == 0).all()
        torch.testing.assert_close(part, torch.arange(len(part)) + part[0], atol=0.05, rtol=0)
        assert part[0].round() == what.start
        assert sounds[0].nonzero()[0] == what.offset


def test_the_pause_inside_a_clip_does_not_count_as_its_class():
    audio = torch.full((1, 6144), 0.3)
    audio[:, 2048:4096] = 0.003
    _, sounds = heard(audio, drawn(NONE, [6144]))
    assert sounds[0].nonzero().flatten().tolist() == [*range(2048), *range(4096, 6144)]


def test_a_soft_part_of_a_clip_sounds_and_is_not_clear():
    audio = torch.full((1, 6144), 0.3)
    audio[:, 2048:4096] = 0.02
    _, sounds, clear = place(audio, torch.zeros(0, 6144), torch.arange(0), drawn(NONE, [6144]), RATE)
    assert sounds.all()
    assert clear[0].nonzero().flatten().tolist() == [*range(2048), *range(4096, 6144)]


def test_gain_is_in_its_range_and_polarity_turns_about_as_many_as_its_chance():
    audio = torch.full((200, CANVAS), 0.1)
    out, _ = heard(audio, drawn(replace(NONE, gain=Gain(1, (-20, 6)), polarity=Polarity(0.5)), [CANVAS] * 200))
    gains = db((out[:, 0] / 0.1).square())
    assert -20.01 <= gains.min() < -18
    assert 4 < gains.max() <= 6.01
    assert 70 < (out[:, 0] < 0).sum() < 130
    torch.testing.assert_close(out, out[:, :1].expand(-1, CANVAS))


def test_what_is_too_loud_is_clipped_at_full_scale():
    out, _ = heard(tone(440) * 3, drawn(replace(NONE, gain=Gain(1, (20, 20))), [CANVAS]))
    assert out.abs().max() == 1


def test_background_and_noise_are_mixed_at_the_drawn_ratio_to_the_clip():
    audio, bed = torch.randn(1, CANVAS) * 0.05, torch.randn(1, CANVAS) * 0.3
    for how, beds in (
        (replace(NONE, background=Background(1, (12, 12))), bed),
        (replace(NONE, noise=Noise(1, (12, 12))), None),
    ):
        out, _ = heard(audio, drawn(how, [CANVAS]), beds)
        added = out - audio
        assert abs(float(db(audio.square().mean() / added.square().mean())) - 12) < 0.3


def test_the_ratio_is_to_the_part_that_is_kept_not_to_the_canvas():
    audio = torch.randn(1, 2000) * 0.1
    out, _ = heard(audio, drawn(replace(NONE, noise=Noise(1, (12, 12))), [2000]))
    assert abs(float(db(audio.square().mean() / out[:, 2000:].square().mean())) - 12) < 0.3


def test_noise_with_a_deviation_is_as_loud_whatever_the_clips_level():
    audio = torch.cat([tone(440), tone(440) * 0.01])
    out, _ = heard(audio, drawn(replace(NONE, noise=Noise(1, std=0.02)), [CANVAS] * 2))
    added = out - audio
    torch.testing.assert_close(added.std(1), torch.full((2,), 0.02), rtol=0.05, atol=0)
    assert abs(torch.corrcoef(added)[0, 1]) < 0.05


def test_a_background_stands_behind_the_example_it_was_drawn_for():
    audio, beds = torch.randn(3, CANVAS) * 0.05, torch.randn(2, CANVAS) * 0.3
    what = drawn(replace(NONE, background=Background(1, (6, 6))), [CANVAS] * 3)
    out, _ = heard(audio, what, beds, torch.tensor([2, 0]))
    assert torch.equal(out[1], audio[1])
    for row, bed in ((2, 0), (0, 1)):
        assert torch.corrcoef(torch.stack([out[row] - audio[row], beds[bed]]))[0, 1] > 0.999


def test_an_example_without_a_clip_is_its_background_at_its_own_level():
    bed = torch.randn(1, CANVAS) * 0.1
    for chance in (0, 1):
        out, sounds = heard(torch.zeros(1, 10), drawn(replace(NONE, background=Background(chance), mixup=Mixup(1)), [1]), bed)
        torch.testing.assert_close(out, bed)
        assert not sounds.any()


def test_mixup_adds_the_partner_at_the_drawn_level():
    audio = torch.stack([torch.full((CANVAS,), 0.01), torch.full((CANVAS,), 0.1)])
    what = replace(drawn(replace(NONE, mixup=Mixup(1, (-6, -6))), [CANVAS] * 2), partner=torch.tensor([1, 0]))
    out, _ = heard(audio, what)
    torch.testing.assert_close(out[:, 0], torch.tensor([0.01, 0.1]) * (1 + 10 ** (-6 / 20)))


def in_a_room(t60_s, drr_db, seed=1):
    """What a click of 1 becomes in a room."""
    what = drawn(replace(NONE, reverb=Reverb(1, (t60_s, t60_s), (drr_db, drr_db))), [CANVAS], seed)
    click = torch.zeros(1, CANVAS)
    click[0, 0] = 1
    return reverberate(click, what, RATE)[0]


@pytest.mark.parametrize("t60_s", [0.1, 0.3, 0.5])
def test_a_rooms_energy_decays_by_60_db_in_its_t60(t60_s):
    answers = torch.stack([in_a_room(t60_s, 5, seed) for seed in range(40)])
    energy = answers.square().mean(0)
    begin, end = int(0.1 * t60_s * RATE), int(0.9 * t60_s * RATE)
    width = int(0.05 * t60_s * RATE)
    fallen = db(energy[begin : begin + width].mean() / energy[end - width : end].mean())
    assert abs(float(fallen) - 60 * (end - width - begin) / RATE / t60_s) < 2
    assert (energy[int(0.5 * RATE) :] < 1e-9).all()


@pytest.mark.parametrize("drr_db", [0.0, 6.0, 15.0])
def test_the_direct_sound_stands_above_the_room_as_drawn(drr_db):
    energy = torch.stack([in_a_room(0.3, drr_db, seed) for seed in range(40)]).square().mean(0)
    assert float(db(energy[0] / energy[1:].sum())) == pytest.approx(drr_db, abs=0.3)
    assert float(energy.sum()) == pytest.approx(1, abs=0.05)


def test_a_room_keeps_the_loudness_of_a_sound():
    noise = torch.randn(30, CANVAS) * 0.1
    what = drawn(replace(NONE, reverb=Reverb(1)), [CANVAS] * 30)
    change_db = db(reverberate(noise, what, RATE).square().mean(1) / noise.square().mean(1))
    assert change_db.abs().max() < 1.5
    assert change_db.mean().abs() < 0.4


def test_an_example_outside_any_room_is_untouched_bit_for_bit():
    audio = torch.randn(40, CANVAS) * 0.1
    what = drawn(replace(NONE, reverb=Reverb(0.5)), [CANVAS] * 40)
    outside = what.drr_db.isinf()
    assert 8 < outside.sum() < 32
    wet = reverberate(audio, what, RATE)
    assert torch.equal(wet[outside], audio[outside])
    assert ((wet - audio)[~outside].abs().amax(1) > 0).all()
    assert reverberate(audio, drawn(NONE, [CANVAS] * 40), RATE) is audio


def test_a_sound_in_a_room_begins_no_earlier_and_its_own_part_is_still_where_it_sounds():
    what = drawn(replace(NONE, reverb=Reverb(1)), [2048])
    clip = torch.zeros(1, CANVAS)
    clip[:, 3000:5048] = torch.randn(2048) * 0.1
    what = replace(what, offset=torch.tensor([3000]))
    out, sounds = heard(clip, what)
    assert out[:, :3000].abs().max() < 1e-6
    assert out[:, 5048:6000].abs().max() > 1e-3
    assert sounds[0].nonzero()[[0, -1], 0].tolist() == [3000, 5047]


@pytest.mark.parametrize("semitones", [-4.0, -2.0, -0.5, 1.0, 2.0, 4.0])
def test_a_pitch_shift_moves_a_tones_peak_by_the_ratio_and_keeps_its_duration(semitones):
    ratio, n, hop, hz = 2 ** (semitones / 12), 1024, 256, 1000.0
    audio = torch.nn.functional.pad(tone(hz), (2048, 2048))
    magnitude = torch.stft(audio, n, hop, window=torch.hann_window(n), center=False, return_complex=True).abs()
    shifted = shift(magnitude, torch.tensor([ratio]))
    bins = shifted.sum(2)[0]
    peak = int(bins.argmax())
    near = torch.arange(peak - 3, peak + 4)
    assert float((near * bins[near]).sum() / bins[near].sum()) * RATE / n == pytest.approx(ratio * hz, abs=0.6 * RATE / n)
    assert torch.equal(shifted.amax(1) > 1, magnitude.amax(1) > 1)


def test_a_pitch_shift_leaves_the_others_bit_for_bit_and_loses_what_leaves_the_spectrum():
    magnitude = torch.rand(3, 65, 10)
    out = shift(magnitude, torch.tensor([1.0, 0.5, 2.0]))
    assert torch.equal(out[0], magnitude[0])
    torch.testing.assert_close(out[1, :33], magnitude[1, ::2])
    assert (out[1, 34:] == 0).all()
    torch.testing.assert_close(out[2, ::2], magnitude[2, :33])
    assert shift(magnitude, torch.ones(3)) is magnitude


def test_stretch_is_the_phase_vocoders_magnitude():
    audio = torch.randn(2, 16_000)
    spectrum = torch.stft(audio, 512, 128, window=torch.hann_window(512), center=False, return_complex=True)
    advance = torch.linspace(0, torch.pi * 128, 257)[:, None]
    for rate in (0.75, 1.0, 1.3):
        expected = torchaudio.functional.phase_vocoder(spectrum, rate, advance).abs()
        frames = expected.shape[2] - 1
        out = stretch(spectrum.abs(), torch.full((2,), rate), frames)
        torch.testing.assert_close(out, expected[:, :, :frames], atol=1e-3, rtol=1e-4)


def test_stretch_keeps_the_pitch_and_changes_the_length_per_example():
    lines = torch.zeros(3, 10, 40)
    lines[:, 3, :20] = 1
    rates = torch.tensor([2.0, 0.5, 1.0])
    out = stretch(lines, rates, 40)
    assert (out.sum(2).argmax(1) == 3).all()
    assert (out[0, 3] > 0).sum() in (10, 11)
    assert (out[1, 3] > 0).sum() in (39, 40)
    assert torch.equal(out[2], lines[2])
    flags = stretch_times(lines[:, 3] > 0, rates, 40)
    assert flags.sum(1).tolist() == [10, 40, 20]


def test_a_stretch_past_the_end_of_the_source_is_silence():
    out = stretch(torch.ones(2, 5, 10), torch.tensor([3.0, 1.0]), 20)
    assert (out[0, :, 4:] == 0).all()
    assert out[1].sum(1).tolist() == [10] * 5


def test_equalise_gives_each_example_its_own_smooth_response():
    what = drawn(replace(NONE, eq=Eq(1, 6)), [CANVAS] * 50)
    response_db = 2 * db(equalise(torch.ones(50, 129, 3), what, RATE))
    assert 5 < response_db[:, ::32].std() < 7
    torch.testing.assert_close(response_db[:, ::32, 0], what.eq_db, atol=1e-4, rtol=0)
    torch.testing.assert_close(response_db[:, 16, 1], (what.eq_db[:, 0] + what.eq_db[:, 1]) / 2, atol=1e-3, rtol=0)
    assert torch.equal(equalise(torch.ones(2, 129, 3), drawn(NONE, [CANVAS] * 2), RATE), torch.ones(2, 129, 3))


def test_a_band_is_3_db_down_at_its_two_corners_and_20_db_an_octave_beyond():
    """Bins of 5 Hz, up to 8 kHz."""
    corners = torch.tensor([[100.0, 1000.0], [250.0, 3500.0], [0.0, torch.inf]])
    what = replace(drawn(NONE, [CANVAS] * 3), low_hz=corners[:, 0], high_hz=corners[:, 1])
    response_db = 2 * db(equalise(torch.ones(3, 1601, 2), what, 16_000))
    for of_row, (low, high) in zip(response_db[:2], corners[:2].int().tolist(), strict=True):
        for hz, beyond in ((low, low // 2), (high, high * 2)):
            torch.testing.assert_close(of_row[hz // 5], torch.full((2,), -3.01), atol=0.05, rtol=0)
            assert (of_row[beyond // 5] < -20).all()
        assert of_row[2 * low // 5 : high // 2 // 5].abs().max() < 0.05
        assert (of_row[: low // 5].diff(dim=0) >= 0).all()
        assert (of_row[high // 5 :].diff(dim=0) <= 0).all()
        assert (of_row[0] < -90).all()
    assert (response_db[2] == 0).all()


def test_a_band_beyond_what_a_number_holds_leaves_no_number_undefined():
    what = replace(drawn(NONE, [CANVAS] * 2), low_hz=torch.tensor([1e6, 1.0]), high_hz=torch.tensor([1e6, 1.0]))
    assert equalise(torch.ones(2, 129, 3), what, 96_000).isfinite().all()


def test_about_the_drawn_share_of_blocks_is_lost_and_the_rest_is_untouched():
    audio = torch.randn(40, CANVAS) * 0.1
    what = drawn(replace(NONE, lost=Lost(0.5, 0.4)), [CANVAS] * 40)
    out, sounds = heard(audio, what)
    spared = what.lost == 0
    assert 8 < spared.sum() < 32
    assert torch.equal(out[spared], audio[spared])
    assert sounds.all()
    block = round(LOST_S * RATE)
    silent = (out.view(40, -1, block) == 0).all(2)
    assert torch.equal(out, torch.where(silent.repeat_interleave(block, 1), 0.0, audio))
    deviation = (what.lost * (1 - what.lost) / silent.shape[1]).sqrt()
    assert ((silent.float().mean(1) - what.lost).abs() <= 4 * deviation).all()
    assert (silent[~spared] != silent[~spared][0]).any()


def test_both_channels_of_a_clip_lose_the_same_blocks():
    audio = torch.rand(8, CANVAS) + 0.1  # nothing of it is silent by chance
    what = drawn(replace(NONE, lost=Lost(1, 0.4)), [CANVAS] * 4).for_channels(2)
    out, *_ = place(audio, torch.zeros(0, CANVAS), torch.arange(0), what, RATE, channels=2)
    lost = out == 0
    assert lost.any()
    assert torch.equal(lost[::2], lost[1::2])


def test_a_style_moves_mean_and_deviation_of_each_band_towards_anothers():
    torch.manual_seed(1)
    features = torch.randn(4, MELS, FRAMES) * torch.rand(4, MELS, 1) + torch.randn(4, MELS, 1)
    what = drawn(replace(NONE, style=Style(1)), [CANVAS] * 4)
    what = replace(what, style_of=torch.tensor([1, 2, 3, 0]), style_own=torch.tensor([0.0, 1.0, 0.25, 0.0]))
    out = restyle(features, what)
    mean, deviation = features.mean(2), features.std(2)
    assert torch.equal(out[1], features[1])
    for row, other, own in ((0, 1, 0.0), (2, 3, 0.25), (3, 0, 0.0)):
        torch.testing.assert_close(out[row].mean(1), own * mean[row] + (1 - own) * mean[other])
        torch.testing.assert_close(out[row].std(1), own * deviation[row] + (1 - own) * deviation[other])
        shape_before, shape_after = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (features[row], out[row]))
        torch.testing.assert_close(shape_before, shape_after, atol=1e-4, rtol=1e-4)
    assert restyle(features, drawn(NONE, [CANVAS] * 4)) is features


def test_the_style_of_silence_and_of_silence_itself_is_a_number():
    features = torch.zeros(2, MELS, FRAMES)
    features[1] = torch.randn(MELS, FRAMES)
    what = replace(drawn(NONE, [CANVAS] * 2), style_of=torch.tensor([1, 0]), style_own=torch.zeros(2))
    out = restyle(features, what)
    assert out.isfinite().all()
    assert out[1].std() < 0.01


def test_mask_blanks_one_run_of_bands_and_one_of_frames():
    what = drawn(replace(NONE, mask=Mask(1)), [CANVAS] * 50)
    out = mask(torch.ones(50, MELS, FRAMES), what)
    for i in range(50):
        rows, columns = (out[i] == 0).all(1), (out[i] == 0).all(0)
        if what.bands[i] < MELS and what.frames[i] < FRAMES:
            assert rows.sum() == what.bands[i]
            assert columns.sum() == what.frames[i]
        assert ((out[i] == 0) == (rows[:, None] | columns[None, :])).all()
    assert what.bands.max() == 10
    assert what.frames.max() == 16
