from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.cfg import parse_cfg
from trainer.crnn import CRNN
from trainer.data import FULL_SCALE, Decoded
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
    Mixup,
    Noise,
    Pitch,
    Polarity,
    Reverb,
    Stretch,
    Style,
)
from trainer.hear import Batch, Passage, Sounds, cut, cut_bed, frames_of, hear, heard_frames, mix, prepare, rows_of
from trainer.recipe import Recipe, Stream, Train

RATE, STREAMS = 8000, 8
TEXT = """
[frontend]
sample_rate=8000
n_fft=256
hop_length=128
n_mels=16
f_min=60
[conv2d]
out_channels=4
kernel_size=3
[maxpool2d]
kernel_size=[2,4]
[moddims]
permute=[2,1,0]
collapse=[1,2]
[gru]
hidden_size=4
[linear]
out_features=3
"""
CFG = parse_cfg(TEXT)
STEREO = parse_cfg("[input]\nshape=[2,16,60]\n" + TEXT)
STREAM = Recipe(stream=Stream(canvas_s=1.0))
WHOLE = replace(STREAM, train=Train(loss="clip"))
LIVELY = Augmentation(crop=Crop(0.8), late=Late(0.8), background=Background(0.5), stretch=Stretch(0.5), mixup=Mixup(0.3))


def decoded(parts):
    return Decoded(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))


def noise(lengths, channels=1, seed=1, level=8000):
    random = np.random.default_rng(seed)
    shape = (channels,) if channels > 1 else ()
    return decoded([random.integers(-level, level, (length, *shape)).astype(np.int16) for length in lengths])


def sounds(lengths, beds=(), channels=1):
    targets = torch.arange(len(lengths)) % 3
    return Sounds(noise(lengths, channels), targets, noise(beds, channels, 2) if beds else None)


def prepared(recipe, which, lengths, beds=(), rows=STREAMS, seed=1, cfg=CFG):
    heard = sounds(lengths, beds, cfg.channels)
    return heard, prepare(cfg, recipe, heard, torch.tensor(which), rows, torch.Generator().manual_seed(seed))


def tensors(batch):
    """Every tensor of a batch and of its draw, by name."""
    own = {f.name: getattr(batch, f.name) for f in fields(Batch)} | {f.name: getattr(batch.drawn, f.name) for f in fields(Draw)}
    return {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("recipe", [STREAM, WHOLE])
def test_a_generator_of_the_same_seed_prepares_the_same_batch(recipe):
    recipe = replace(recipe, augment=replace(LIVELY, late=Late(0.0)))
    first, again, other = (prepared(recipe, [0, 1, 2], [9000, 5000, 200], [4000], 3, seed)[1] for seed in (1, 1, 2))
    assert all(torch.equal(value, tensors(again)[name]) for name, value in tensors(first).items())
    assert first.drawn.seed == again.drawn.seed
    assert not torch.equal(first.clips[0], other.clips[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=STREAMS), st.integers(0, 999), st.booleans(), st.sampled_from([1, 2]))
def test_a_clip_lies_where_the_draw_says_with_every_sample_of_its_kept_part(lengths, seed, stream, channels):
    stream = stream and channels == 1
    recipe = replace(STREAM if stream else WHOLE, augment=LIVELY if stream else replace(LIVELY, late=Late(0.0)))
    which = list(range(len(lengths)))
    rows = STREAMS if stream else len(lengths)
    heard, batch = prepared(recipe, which, lengths, rows=rows, seed=seed, cfg=CFG if channels == 1 else STEREO)
    canvas = batch.clips.shape[1]
    assert batch.clips.dtype == torch.int16
    sounding = batch.target >= 0
    assert batch.clips.shape[0] == rows * channels
    assert sounding.sum() == len(lengths)
    places = batch.clips.view(rows, channels, canvas)
    free = list(which)
    for row in range(rows):
        start, keep, offset = (int(getattr(batch.drawn, name)[row]) for name in ("start", "keep", "offset"))
        if not sounding[row]:
            assert not places[row].any()
            continue
        expected = [
            clip
            for clip in free
            if heard.targets[clip] == batch.target[row]
            and np.array_equal(
                places[row, :, offset : offset + keep].numpy(),
                heard.clips[clip][start : start + keep].reshape(-1, channels).T[:, : canvas - offset],
            )
        ]
        assert expected, row
        free.remove(expected[0])
        assert not places[row, :, :offset].any()
        assert not places[row, :, offset + keep :].any()
        if not stream:
            assert offset + keep <= canvas
    assert not free


def test_a_part_that_runs_over_the_canvas_is_cut_at_its_end():
    audio = decoded([np.arange(1, 101, dtype=np.int16)])
    one = [torch.tensor([value]) for value in (0, 20, 60, 50)]
    out = cut(audio, *one, 80)
    assert out[0, :50].tolist() == [0] * 50
    assert out[0, 50:].tolist() == list(range(21, 51))


def test_full_scale_is_exact_to_the_last_bit_of_16():
    extremes = decoded([np.array([-32768, 32767, -1, 0, 1] * 400, np.int16)])
    batch = prepare(CFG, WHOLE, Sounds(extremes, torch.tensor([0]), None), torch.tensor([0]), 1, torch.Generator().manual_seed(1))
    assert torch.equal(batch.clips[0, :2000], torch.from_numpy(extremes.samples))
    assert ((batch.clips / FULL_SCALE) * FULL_SCALE).to(torch.int16).equal(batch.clips)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.999), st.integers(1, 500), st.sampled_from([1, 2]))
def test_a_background_begins_anywhere_and_is_heard_over_and_over_where_it_is_short(length, share, canvas, channels):
    bed = noise([length], channels)
    out = cut_bed(bed, torch.tensor([0]), torch.tensor([share]), canvas).numpy()
    assert out.shape == (channels, canvas)
    whole = bed[0].reshape(-1, channels).T
    first = next(at for at in range(length) if np.array_equal(whole[:, at : at + canvas], out[:, : length - at]))
    if length >= canvas:
        assert first + canvas <= length
    else:
        period = length - first
        for at in range(0, canvas, period):
            assert np.array_equal(out[:, at : at + period], whole[:, first:][:, : canvas - at])
        assert first == 0


def test_a_row_without_a_clip_has_no_target_and_hears_nothing():
    recipe = replace(STREAM, augment=replace(LIVELY, background=Background(0.5)))
    _, batch = prepared(recipe, [0, 1], [9000, 5000], [30_000, 500], rows=64, seed=3)
    empty = batch.target < 0
    assert empty.sum() == 62
    assert not batch.clips[empty].any()
    assert not empty[batch.bed_rows].any()
    assert len(batch.bed_rows) == len(batch.beds) == batch.drawn.background_db.isfinite()[~empty].sum() > 0
    assert not batch.active.any()
    known = hear(CRNN(CFG).frontend, batch, 3)
    assert not known.labels[empty].any()
    assert not known.own[empty].any()
    assert not known.partner[empty].any()
    assert not known.partner_labels[empty].any()
    assert known.labels[~empty].sum(1).tolist() == [1, 1]
    assert (known.features[empty] == known.features[empty][0]).all()


def test_no_row_hears_a_background_when_there_are_none():
    _, batch = prepared(replace(STREAM, augment=LIVELY), [0, 1, 2], [9000, 5000, 800])
    assert len(batch.beds) == len(batch.bed_rows) == 0
    assert hear(CRNN(CFG).frontend, batch, 3).features.isfinite().all()


def passages_of(recipe, steps, seed=9, cfg=CFG):
    """A soundscape of noise in so many passages, as a Street has them; and its sound, and what is active in which frame."""
    frames, canvas = frames_of(cfg, recipe)
    step = frames * cfg.frontend.hop_length
    random = np.random.default_rng(seed)
    audio = random.integers(-8000, 8000, steps * step + canvas).astype(np.int16)
    active = random.random((steps * frames // 7 + 1, 3)).repeat(7, axis=0)[: steps * frames] > 0.5
    parts = [
        Passage(
            audio[at * step : at * step + canvas],
            active[at * frames : (at + 1) * frames],
            ~active[at * frames : (at + 1) * frames],
            seed,
            at == 0,
        )
        for at in range(steps)
    ]
    return parts, audio, active


WILD = replace(
    LIVELY,
    gain=Gain(1),
    polarity=Polarity(0.5),
    reverb=Reverb(1),
    mixup=Mixup(1),
    noise=Noise(1),
    stretch=Stretch(1),
    pitch=Pitch(1),
    eq=Eq(1),
    band=Band(1),
    style=Style(1),
)
"""Everything but what blanks parts at random, and always on."""


@pytest.mark.parametrize("cfg", [CFG, STEREO], ids=["mono", "stereo"])
def test_the_passages_of_consecutive_steps_are_heard_as_one_continuous_sound(cfg):
    steps, step_s = 3, 16 * CFG.hop / RATE
    short, long = (replace(STREAM, augment=WILD, stream=Stream(canvas_s=length)) for length in (step_s, steps * step_s))
    parts, audio, active = passages_of(short, steps, cfg=cfg)
    whole = Passage(np.pad(audio, (0, frames_of(cfg, long)[1]))[: frames_of(cfg, long)[1]], active, ~active, 9, True)
    heard, frontend = sounds([9000, 5000], [30_000], cfg.channels), CRNN(cfg).frontend

    def features(recipe, passage, seed):
        generator = torch.Generator().manual_seed(seed)
        batch = prepare(cfg, recipe, heard, torch.tensor([0, 1]), 3, generator, [passage])
        assert batch.target[2] == -1
        return hear(frontend, batch, 3).features[2 * cfg.channels :], batch.active[2]

    joined, of_rows = zip(*(features(short, part, seed) for seed, part in enumerate(parts)), strict=True)
    at_once, of_whole = features(long, whole, 77)
    torch.testing.assert_close(torch.cat(joined, dim=2), at_once, atol=1e-3, rtol=1e-3)
    assert torch.equal(torch.cat(of_rows), of_whole)
    expected = active.reshape(-1, cfg.stride_frames, 3).mean(1) >= 0.5
    assert np.array_equal(of_whole.numpy(), expected)
    if cfg.channels == 2:
        assert torch.equal(at_once[0], at_once[1])


def test_passages_stand_in_the_last_rows_and_hear_neither_a_clip_nor_what_is_done_to_clips():
    recipe = replace(STREAM, augment=WILD)
    heard = sounds([9000] * 5, [30_000])
    passages = [passages_of(recipe, 1, seed)[0][0] for seed in (4, 5, 6)]
    batch = prepare(CFG, recipe, heard, torch.arange(4), STREAMS, torch.Generator().manual_seed(1), passages)
    assert (batch.target[:5] >= 0).sum() == 4
    assert batch.target[5:].tolist() == [-1] * 3
    assert batch.bed_rows[-3:].tolist() == [5, 6, 7]
    assert not batch.clips[5:].any()
    d = batch.drawn
    for name, off in {"rate": 1, "style_own": 1, "partner_gain": 0, "noise_std": 0}.items():
        assert (getattr(d, name)[5:] == off).all(), name
        assert name == "noise_std" or (getattr(d, name)[:5] != off).any(), name
    for name in ("drr_db", "background_db", "noise_db"):
        assert getattr(d, name)[5:].isinf().all(), name
        assert getattr(d, name)[:5].isfinite().any(), name
    known = hear(CRNN(CFG).frontend, batch, 3)
    for nothing in (known.labels, known.own, known.partner, known.partner_labels):
        assert not nothing[5:].any()
    plain = [torch.from_numpy(passage.audio)[None] / FULL_SCALE for passage in passages]
    mixed, *_ = mix(batch, CFG.frontend)
    torch.testing.assert_close(mixed[5:], (torch.cat(plain) * d.gain[5:, None]).clamp(-1, 1))


def test_a_row_of_soundscapes_keeps_its_microphone_and_starts_anew_only_where_a_soundscape_begins():
    recipe = replace(STREAM, augment=replace(WILD, lost=Lost(1)), stream=Stream(canvas_s=1.0, fresh=0.5))
    heard = sounds([9000], [30_000])
    first, other = (passages_of(recipe, 40, seed)[0] for seed in (4, 5))
    said = {"fresh": [], "begins": []}
    microphones = {4: set(), 5: set()}
    for seed, (one, two) in enumerate(zip(first, other, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        two = replace(two, begins=seed % 4 == 0)
        batch = prepare(CFG, recipe, heard, torch.tensor([0]), 3, generator, [one, two])
        for row, passage in ((1, one), (2, two)):
            kept = [getattr(batch.drawn, name)[row] for name in ("gain", "ratio", "low_hz", "high_hz", "lost")]
            microphones[passage.seed].add((*map(float, kept), *batch.drawn.eq_db[row].tolist()))
        said["fresh"] += batch.fresh[1:].tolist()
        said["begins"] += [one.begins, two.begins]
    assert {seed: len(found) for seed, found in microphones.items()} == {4: 1, 5: 1}
    assert microphones[4] != microphones[5]
    assert not any(fresh and not begins for fresh, begins in zip(said["fresh"], said["begins"], strict=True))
    assert 0 < sum(said["fresh"]) < sum(said["begins"])


def test_the_plain_clip_is_heard_as_the_front_end_hears_it():
    for recipe, cfg in ((STREAM, CFG), (WHOLE, CFG), (WHOLE, STEREO)):
        _, batch = prepared(recipe, [1], [700, 9000], rows=1, cfg=cfg)
        frontend = CRNN(cfg).frontend
        features = hear(frontend, batch, 3).features
        assert features.shape == (cfg.channels, 16, batch.frames)
        audio = batch.clips / FULL_SCALE
        whole = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 128))
        expected = frontend(whole)[:, :, : batch.frames]
        torch.testing.assert_close(features[:, :, : expected.shape[2]], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.0, 1.25, 2.0])
def test_the_rows_that_sound_follow_the_stretch(rate):
    recipe = replace(STREAM, augment=Augmentation(stretch=Stretch(1, (rate, rate))))
    length = 4096
    _, batch = prepared(recipe, [0], [length], rows=1)
    own = rows_of(hear(CRNN(CFG).frontend, batch, 3).own, batch, CFG.stride_frames)[0]
    assert own.shape == (batch.frames // CFG.stride_frames,)
    wanted = length / rate / CFG.hop
    assert own.sum() == pytest.approx(min(wanted, len(own)), abs=1)
    assert own[: int(own.sum())].all()


def test_the_rows_that_sound_follow_a_late_beginning():
    _, batch = prepared(STREAM, [0], [2048], rows=1)
    late = replace(batch, drawn=replace(batch.drawn, offset=torch.tensor([4096])), clips=batch.clips.roll(4096, 1))
    rows = rows_of(hear(CRNN(CFG).frontend, late, 3).own, late, CFG.stride_frames)[0].nonzero().flatten()
    assert rows.tolist() == [4096 // CFG.hop + i for i in range(2048 // CFG.hop)]


def test_the_partners_label_holds_where_the_partner_sounds():
    recipe = replace(STREAM, augment=Augmentation(mixup=Mixup(1)))
    _, batch = prepared(recipe, [0, 1], [8000, 3000], rows=2)
    batch = replace(batch, drawn=replace(batch.drawn, partner=torch.tensor([1, 0])))
    known = hear(CRNN(CFG).frontend, batch, 3)
    assert torch.equal(known.partner, known.own[[1, 0]])
    assert torch.equal(known.partner_labels, known.labels[[1, 0]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=6), st.floats(0.5, 2))
def test_a_batch_of_whole_clips_has_room_for_each_to_its_end(lengths, rate):
    recipe = replace(WHOLE, augment=Augmentation(stretch=Stretch(1, (rate, rate))))
    _, batch = prepared(recipe, list(range(len(lengths))), lengths, rows=len(lengths))
    own = heard_frames(CFG, batch.drawn)
    fe = CFG.frontend
    whole = [max(1, int(max(1, (length - fe.n_fft) // fe.hop_length + 1) / batch.drawn.rate[0])) for length in lengths]
    assert own.tolist() == whole
    assert batch.frames == max(CFG.receptive_frames, *whole)
    assert batch.clips.shape[1] >= max(lengths)
    assert hear(CRNN(CFG).frontend, batch, 3).features.shape == (len(lengths), 16, batch.frames)


def test_a_batch_moves_to_a_device_whole():
    recipe = replace(STREAM, augment=replace(LIVELY, gain=Gain(1), noise=Noise(1)))
    _, batch = prepared(recipe, [0, 1, 2], [9000, 5000, 800], [4000, 300])
    here, elsewhere = batch.to(torch.device("cpu")), batch.to(torch.device("meta"))
    assert all(torch.equal(value, tensors(here)[name]) for name, value in tensors(batch).items())
    assert {value.device.type for value in tensors(elsewhere).values()} == {"meta"}
    for name in ("frames", "channels"):
        assert getattr(here, name) == getattr(elsewhere, name) == getattr(batch, name)
    assert here.drawn.seed == batch.drawn.seed


def test_a_pinned_batch_is_the_same_batch(monkeypatch):
    if not torch.cuda.is_available():  # only a GPU's driver pins memory
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    _, batch = prepared(replace(STREAM, augment=LIVELY), [0, 1, 2], [9000, 5000, 800], [4000, 300])
    pinned = batch.pinned()
    assert all(torch.equal(value, tensors(pinned)[name]) for name, value in tensors(batch).items())
    assert pinned.clips.data_ptr() != batch.clips.data_ptr()
    assert (pinned.frames, pinned.channels, pinned.drawn.seed) == (batch.frames, batch.channels, batch.drawn.seed)
