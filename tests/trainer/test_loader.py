"""What the rows of soundscapes promise: the same street whoever asks, without a seam, and the truth about what sounds in it."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainer.cfg import parse_cfg
from trainer.data import FULL_SCALE, Decoded, background_files, decode, load_dataset
from trainer.frontend import LogMel
from trainer.hear import Sounds, hear, prepare
from trainer.layers import Frontend
from trainer.loader import LENGTH_S, Street
from trainer.recipe import Recipe, Stream, Train
from trainer.streams import BLOCK, Soundscape, bank, soundscape

RATE, ROWS, STEPS = 8000, 6, 8
CFG = parse_cfg(
    "[frontend]\nsample_rate=8000\nn_fft=256\nhop_length=128\nn_mels=16\n[conv2d]\nout_channels=4\nkernel_size=3\n"
    "[maxpool2d]\nkernel_size=[2,4]\n[moddims]\npermute=[2,1,0]\ncollapse=[1,2]\n[linear]\nout_features=3\n"
)
RECIPE = Recipe(stream=Stream(canvas_s=8.0))


@pytest.fixture(scope="module")
def sounds(tones, noises):
    data = load_dataset(tones)
    clips, beds = decode(data.paths, RATE), decode(background_files([noises]), RATE)
    return bank(data, data.of_folds([1, 2]), clips, beds, RATE)


@pytest.fixture
def street(sounds):
    def begin(rows=ROWS, process=0, seed=1, canvas_s=8.0):
        recipe = Recipe(stream=Stream(canvas_s=canvas_s), train=Train(seed=seed))
        return Street(CFG, recipe, sounds, None, rows, SimpleNamespace(global_rank=process))

    return begin


def same(one, other):
    """Whether two rows hear the same."""
    equal = np.array_equal(one.audio, other.audio) and np.array_equal(one.active, other.active)
    return equal and (one.seed, one.begins) == (other.seed, other.begins)


def test_what_a_row_hears_in_a_step_does_not_depend_on_the_steps_before(street):
    walked = street()
    all_steps = [walked.passages(step) for step in range(STEPS)]
    for step in (STEPS - 1, 3, 0):
        assert all(map(same, street().passages(step), all_steps[step]))
    assert all(map(same, walked.passages(2), all_steps[2]))
    walked.forget()
    assert all(map(same, walked.passages(2), all_steps[2]))


def test_two_processes_hear_together_what_one_hears(street):
    halves = [street(ROWS // 2, process) for process in (0, 1)]
    for step in range(STEPS):
        of_both = [passage for half in halves for passage in half.passages(step)]
        assert all(map(same, street().passages(step), of_both))


def test_every_row_and_every_seed_has_its_own_street(street):
    first, other = street().passages(0), street(seed=2).passages(0)
    heard = {passage.seed for passage in (*first, *other)}
    assert len(heard) == 2 * ROWS
    assert len({passage.audio.tobytes() for passage in (*first, *other) if passage.audio.any()}) > ROWS


def test_a_soundscape_lasts_20_to_60_s_and_rows_begin_in_the_middle_of_one(street):
    rows = street(20)
    step_s = rows.frames * rows.hop / RATE
    shortest, longest = (round(length_s / 8) * step_s for length_s in LENGTH_S)
    assert len(set(rows.lengths)) > 3
    assert all(shortest <= length * step_s <= longest for length in rows.lengths)
    starts = {row: next(step for step in range(60) if rows.passages(step)[row].begins) for row in range(4)}
    assert len(set(starts.values())) > 1


@pytest.mark.parametrize("canvas_s", [0.1, 100.0])
def test_a_canvas_may_be_shorter_or_longer_than_a_soundscape_usually_is(street, canvas_s):
    rows = street(2, canvas_s=canvas_s)
    assert [passage.audio.shape for passage in rows.passages(5)] == [(rows.canvas,)] * 2
    assert [passage.active.shape for passage in rows.passages(6)] == [(rows.frames, 3)] * 2
    assert min(rows.lengths) * rows.frames * rows.hop / RATE > 0.9 * LENGTH_S[0]


def test_a_soundscape_is_heard_from_its_begin_to_its_end_without_a_seam_and_with_its_own_events(street, sounds):
    rows = street()
    step, steps = rows.frames * rows.hop, range(2 * max(rows.lengths))
    for row, heard in enumerate(zip(*(rows.passages(number) for number in steps), strict=True)):
        assert all(now.begins == (now.seed != before.seed) for before, now in pairwise(heard))
        first = next(at for at, passage in enumerate(heard) if passage.begins)
        parts = heard[first : first + rows.lengths[row]]
        assert len({part.seed for part in parts}) == 1
        number = (first + rows.seeds[row] // 64 % rows.lengths[row]) // rows.lengths[row]
        scene = soundscape(sounds, len(parts) * step + rows.canvas, [rows.seeds[row], number], busy=True)
        for at, part in enumerate(parts):
            here = scene.audio[at * step : at * step + rows.canvas]
            assert np.array_equal(part.audio, np.round(here * (FULL_SCALE - 1)))
        active = np.concatenate([part.active for part in parts])
        time = np.arange(len(active)) * rows.hop
        for label in range(3):
            events = [event for event in scene.events if event.label == label]
            near = np.zeros(len(active), bool)
            for event in events:
                near |= (time > event.onset - BLOCK) & (time < event.offset + BLOCK)
                inside = active[(time >= event.onset) & (time < event.offset), label]
                assert inside.mean() > 0.7 if len(inside) > 20 else True
            assert not active[~near, label].any()


def test_silence_takes_the_place_of_the_longest_soundscapes(street):
    rows = street()
    silence, real = rows.silence(3), rows.passages(0)[0]
    assert len(silence) == 3
    assert {(each.audio.shape, each.active.shape) for each in silence} == {(real.audio.shape, real.active.shape)}
    assert silence[0].audio.base.nbytes == rows.audio[:3].nbytes


def test_a_row_is_taught_a_label_where_it_is_heard(street, monkeypatch):
    """A soundscape that sounds exactly where something is active, through the whole way to the features."""

    def one(_, samples, seed, busy):
        random = np.random.default_rng(seed)
        blocks = -(-samples // BLOCK)
        sounding = random.random(blocks // 5 + 1).repeat(5)[:blocks] > 0.6
        audio = random.uniform(-0.5, 0.5, samples) * sounding.repeat(BLOCK)[:samples]
        return Soundscape(
            audio.astype(np.float32),
            (),
            np.stack([sounding, ~sounding, ~sounding & False], axis=1),
            np.zeros((blocks, 3), bool),
        )

    monkeypatch.setattr("trainer.loader.soundscape", one)
    rows, frontend = street(), LogMel(Frontend(RATE, 256, 128, 16))
    none = Sounds(Decoded(np.zeros(1, np.int16), np.array([0, 1])), torch.tensor([0]))
    for step in range(3):
        batch = prepare(
            CFG, RECIPE, none, torch.zeros(0, dtype=torch.long), ROWS, torch.Generator().manual_seed(1), rows.passages(step)
        )
        level = hear(frontend, batch, 3).features.mean(1).view(ROWS, -1, CFG.stride_frames)
        loud, quiet = (level > -8).all(2), (level < -8).all(2)
        assert (loud | quiet).float().mean() > 0.8
        assert batch.active[..., 0][loud].float().mean() > 0.99
        assert not batch.active[..., 0][quiet].any()
        assert batch.active[..., 1][quiet].all()
        assert not batch.active[..., 2].any()
