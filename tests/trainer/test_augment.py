from dataclasses import replace

import torch
import torchaudio

from trainer.augment import NONE, Augmentation, draw, equalise, mask, place, stretch, stretch_times

CANVAS, MELS, FRAMES = 8000, 16, 40


def drawn(how, samples, seed=1):
    return draw(how, torch.tensor(samples), CANVAS, MELS, FRAMES, torch.Generator().manual_seed(seed))


def silence(count):
    return torch.zeros(count, CANVAS)


def db(ratio):
    return 10 * torch.log10(ratio)


def test_a_batch_is_replayed_from_its_draw_and_another_seed_differs():
    audio, beds = torch.randn(4, 6000) * 0.1, torch.randn(4, CANVAS) * 0.1
    first, again, other = (place(audio, beds, drawn(Augmentation(), [6000] * 4, seed))[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_augmentation_a_clip_stands_unchanged_at_the_canvas_begin_but_for_its_polarity():
    audio = torch.randn(1, 6000) * 0.1
    out, sounds = place(audio, silence(1), drawn(NONE, [6000]))
    torch.testing.assert_close(out[:, :6000].abs(), audio.abs())
    assert (out[:, 6000:] == 0).all()
    assert sounds.sum() == 6000


def test_crop_keeps_a_contiguous_part_and_marks_where_it_sounds():
    audio = 0.3 + torch.arange(6000)[None] / 100_000
    for seed in range(20):
        out, sounds = place(audio, silence(1), drawn(replace(NONE, crop_p=1, late_p=1), [6000], seed))
        heard = (out[sounds].abs() - 0.3) * 100_000
        assert (out[~sounds] == 0).all()
        torch.testing.assert_close(heard, torch.arange(len(heard)) + heard[0], atol=0.05, rtol=0)


def test_the_pause_inside_a_clip_does_not_count_as_its_class():
    audio = torch.full((1, 6144), 0.3)
    audio[:, 2048:4096] = 0.003
    _, sounds = place(audio, silence(1), drawn(NONE, [6144]))
    assert sounds[0].nonzero().flatten().tolist() == [*range(2048), *range(4096, 6144)]


def test_gain_is_in_its_range():
    audio = torch.full((64, CANVAS), 0.1)
    out, _ = place(audio, silence(64), drawn(replace(NONE, gain_db=(-20, 6)), [CANVAS] * 64))
    gains = db((out[:, 0] / 0.1).square())
    assert -20.01 <= gains.min() < -15
    assert 3 < gains.max() <= 6.01


def test_background_and_noise_are_mixed_at_the_drawn_ratio_to_the_clip():
    audio, bed = torch.randn(1, CANVAS) * 0.05, torch.randn(1, CANVAS) * 0.3
    for how, beds in (
        (replace(NONE, background_p=1, background_db=(12, 12)), bed),
        (replace(NONE, noise_p=1, noise_db=(12, 12)), silence(1)),
    ):
        what = drawn(how, [CANVAS])
        out, _ = place(audio, beds, what)
        added = out * what.gain.sign() - audio
        assert abs(float(db(audio.square().mean() / added.square().mean())) - 12) < 0.3


def test_an_example_without_a_clip_is_its_background_at_its_own_level():
    bed = torch.randn(1, CANVAS) * 0.1
    out, _ = place(torch.zeros(1, 10), bed, drawn(replace(Augmentation(), gain_db=(0, 0), noise_p=0), [1]))
    torch.testing.assert_close(out.abs(), bed.abs())


def test_mixup_adds_the_partner_at_the_drawn_level():
    audio = torch.stack([torch.full((CANVAS,), 0.01), torch.full((CANVAS,), 0.1)])
    what = replace(drawn(replace(NONE, mixup_p=1, mixup_db=(-6, -6)), [CANVAS] * 2), partner=torch.tensor([1, 0]))
    out, _ = place(audio, silence(2), what)
    torch.testing.assert_close(out[:, 0].abs(), torch.tensor([0.01, 0.1]) * (1 + 10 ** (-6 / 20)))


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
    tone = torch.zeros(2, 10, 40)
    tone[:, 3, :20] = 1
    out = stretch(tone, torch.tensor([2.0, 0.5]), 40)
    assert (out.sum(2).argmax(1) == 3).all()
    assert (out[0, 3] > 0).sum() in (10, 11)
    assert (out[1, 3] > 0).sum() in (39, 40)
    flags = stretch_times(tone[:, 3] > 0, torch.tensor([2.0, 0.5]), 40)
    assert flags.sum(1).tolist() == [10, 40]


def test_equalise_gives_each_example_its_own_smooth_response():
    what = drawn(replace(NONE, eq_db=6), [CANVAS] * 50)
    response_db = 2 * db(equalise(torch.ones(50, 129, 3), what))
    assert 5 < response_db[:, ::32].std() < 7
    torch.testing.assert_close(response_db[:, ::32, 0], what.eq_db, atol=1e-4, rtol=0)
    torch.testing.assert_close(response_db[:, 16, 1], (what.eq_db[:, 0] + what.eq_db[:, 1]) / 2, atol=1e-3, rtol=0)
    assert torch.equal(equalise(torch.ones(2, 129, 3), drawn(NONE, [CANVAS] * 2)), torch.ones(2, 129, 3))


def test_mask_blanks_one_run_of_bands_and_one_of_frames():
    what = drawn(replace(NONE, mask_p=1), [CANVAS] * 8)
    out = mask(torch.ones(8, MELS, FRAMES), what)
    for i in range(8):
        rows, columns = (out[i] == 0).all(1), (out[i] == 0).all(0)
        assert rows.sum() == what.bands[i]
        assert columns.sum() == what.frames[i]
        assert ((out[i] == 0) == (rows[:, None] | columns[None, :])).all()
