import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.errors import InputError
from trainer.data import Clip, DataSet, Decoded, decode, load_dataset
from trainer.soundscape_files import write_soundscapes
from trainer.streams import (
    BED_DB,
    BLOCK,
    FADE_S,
    FAINT_DB,
    LOUDEST,
    PAUSE_S,
    SNR_DB,
    Bank,
    bank,
    soundscape,
)

RATE = 8000
FADE = int(FADE_S * RATE)
SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.integers(RATE // 2, 30 * RATE)


def decoded(*sounds):
    starts = np.cumsum([0, *map(len, sounds)])
    whole = np.concatenate([np.asarray(sound, np.float64) for sound in sounds]) * 32768
    return Decoded(np.round(whole).astype(np.int16), starts)


def named(*names):
    """A data set of clips with these names; the class is the middle one of FSID-CLASS-OCCURRENCE-SLICE."""
    clips = tuple(Clip(Path(f"{name}.wav"), 1, int(name.split("-")[1]), name.split("-")[0]) for name in names)
    return DataSet(Path(), tuple("abc"), clips)


def tone(hz, seconds, size=0.5):
    return size * np.sin(2 * np.pi * hz * (np.arange(int(seconds * RATE)) + 0.5) / RATE)


def quiet(seconds):
    return np.zeros(int(seconds * RATE))


@pytest.fixture(scope="module")
def street():
    """Steady and short sounds, two with a pause in between, one of one sample, an empty one, slices of one recording; no beds."""
    random = np.random.default_rng(3)
    long = 0.3 * random.standard_normal(9 * RATE).clip(-3, 3)
    sounds = {
        "1-0-0-0": tone(300, 1.5),
        "2-0-0-0": np.concatenate([tone(500, 0.3), quiet(0.5), tone(500, 0.3)]),
        "3-1-0-0": np.concatenate([quiet(0.2), tone(900, 0.3), quiet(2.5), tone(900, 0.5, 0.2)]),
        "4-1-0-0": [0.9],
        "5-1-0-0": [],
        "6-1-0-0": quiet(1),
        "7-2-0-0": long[: 4 * RATE],
        "7-2-0-1": long[2 * RATE : 6 * RATE],
        "7-2-0-2": long[4 * RATE : 8 * RATE],
    }
    data = named(*sounds)
    return bank(data, range(len(data.clips)), decoded(*sounds.values()), None, RATE)


def without_sounds(of):
    """The same beds from the same seeds, and nothing over them."""
    return Bank(of.clips, ((),) * len(of.sources), {}, of.beds, of.rate)


@pytest.fixture
def silent_beds(monkeypatch):
    """Every bed is digital silence: what is heard are the events."""
    monkeypatch.setattr(
        "trainer.streams._bed",
        lambda bank, samples, longest, level, draw: np.zeros(samples, np.float32),
    )


@given(LENGTHS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_any_length_and_seed_gives_samples_in_range_and_events_that_lie_in_it(street, samples, seed):
    made = soundscape(street, samples, [seed])
    assert made.audio.shape == (samples,)
    assert made.audio.dtype == np.float32
    assert np.abs(made.audio).max() <= 1  # false for NaN too
    assert made.active.shape == (-(-samples // BLOCK), 3)
    assert all(0 <= event.onset < event.offset <= samples for event in made.events)
    assert [event.onset for event in made.events] == sorted(event.onset for event in made.events)


def test_a_soundscape_depends_on_its_seed_alone(street):
    alone = soundscape(street, 10 * RATE, [1, 7])
    others = [soundscape(street, 10 * RATE, [1, number]) for number in range(9)]
    np.testing.assert_array_equal(others[7].audio, alone.audio)
    np.testing.assert_array_equal(others[7].active, alone.active)
    assert others[7].events == alone.events
    assert len({other.audio.tobytes() for other in others}) == 9


@given(LENGTHS, SEEDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_sound_lies_inside_the_events_and_begins_and_ends_with_them(silent_beds, street, samples, seed):
    made = soundscape(street, samples, [seed])
    outside = made.audio.copy()
    for event in made.events:
        outside[event.onset : event.offset + FADE] = 0  # of a sound's last block there may be no more than some of its fade
        sound = np.abs(made.audio[event.onset : event.offset])
        assert event.onset == 0 or sound[:BLOCK].max() > 0.001 * sound.max()
        assert event.offset == samples or sound[-BLOCK:].max() > 0.001 * sound.max()
    outside[: BLOCK - 1] = outside[samples - BLOCK + 1 :] = 0  # less than a block of a sound is no event
    assert not outside.any()


def test_onsets_and_offsets_are_those_of_the_sound_to_a_block(silent_beds):
    clip = np.concatenate([quiet(0.5), tone(700, 0.4), quiet(0.3)])
    only = bank(named("1-0-0-0"), [0], decoded(clip), None, RATE)
    count = 0
    for seed in range(20):
        made = soundscape(only, 30 * RATE, [seed])
        for event in made.events:
            sounding = np.flatnonzero(made.audio[max(0, event.onset - BLOCK) : event.offset + BLOCK]) + max(0, event.onset - BLOCK)
            assert 0 <= sounding[0] - event.onset < BLOCK
            assert 0 < event.offset - sounding[-1] <= BLOCK
            count += 1
    assert count > 20


@given(LENGTHS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_active_blocks_and_events_agree(street, samples, seed):
    made = soundscape(street, samples, [seed])
    within = np.zeros_like(made.active)
    for event in made.events:
        middles = np.arange(len(made.active)) * BLOCK + BLOCK // 2
        blocks = np.flatnonzero((event.onset <= middles) & (middles < event.offset))
        within[blocks, event.label] = True
        sounding = np.flatnonzero(made.active[blocks, event.label])
        assert event.onset == 0 or sounding[0] == 0
        assert event.offset == samples or sounding[-1] == len(blocks) - 1
        assert np.diff(sounding, prepend=0).max() <= PAUSE_S * RATE / BLOCK + 1
    assert not (made.active & ~within).any()


@given(LENGTHS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_two_events_of_one_label_never_touch(street, samples, seed):
    made = soundscape(street, samples, [seed])
    for label in range(3):
        events = [event for event in made.events if event.label == label]
        for before, after in pairwise(events):
            assert after.onset - before.offset >= int(PAUSE_S * RATE)


@pytest.fixture
def one_event(monkeypatch):
    """No soundscape has more than one."""
    monkeypatch.setattr("trainer.streams.EVENT_EVERY_S", 1e9)


@pytest.mark.parametrize(("pause_s", "count"), [(0.8, 1), (1.3, 2)])
def test_a_long_pause_makes_two_events_of_a_sound_and_a_short_one_does_not(one_event, silent_beds, pause_s, count):
    clip = np.concatenate([tone(500, 0.3), quiet(pause_s), tone(500, 0.3)])
    only = bank(named("1-0-0-0"), [0], decoded(clip), None, RATE)
    counts = [len(soundscape(only, 20 * RATE, [seed]).events) for seed in range(40)]
    assert max(counts) == count
    assert counts.count(count) > 15


def test_slices_of_one_recording_come_back_as_the_recording(one_event, silent_beds):
    """UrbanSound8K cuts a sound of 14 s into six slices of 4 s, one every 2 s. All but the fades is the recording's own samples."""
    recording = 0.2 * np.random.default_rng(5).standard_normal(14 * RATE).clip(-3, 3)
    slices = [recording[2 * i * RATE : (2 * i + 4) * RATE] for i in range(6)]
    only = bank(named(*(f"7-0-0-{i}" for i in range(6))), range(6), decoded(*slices), None, RATE)
    written = np.round(recording * 32768) / 32768
    longest_s = 0.0
    for seed in range(60):
        made = soundscape(only, 40 * RATE, [seed])
        sounding = np.flatnonzero(made.audio)
        if not len(sounding) or sounding[0] == 0:
            continue
        heard = made.audio[sounding[0] + FADE :]
        begins = [written[start * RATE :] for start in range(0, 12, 2)]
        begins = [begin[FADE + shift :] for begin in begins for shift in (1, 0)]  # the first sample of a fade is 0
        head = min(len(heard), RATE)
        best = max(begins, key=lambda begin, heard=heard, head=head: float(np.dot(begin[:head], heard[:head])))
        both = min(len(best), len(heard), sounding[-1] + 1 - sounding[0] - FADE) - FADE
        if both < RATE:
            continue
        gain = np.dot(best[:both], heard[:both]) / np.dot(best[:both], best[:both])
        np.testing.assert_allclose(heard[:both], gain * best[:both], atol=1e-5 * gain)
        longest_s = max(longest_s, both / RATE)
    assert longest_s > 10


def test_slices_that_are_not_here_are_not_gone_on_with():
    sounds = tone(300, 4), tone(400, 4), tone(500, 4)
    made = bank(named("7-0-0-0", "7-0-0-1", "7-0-0-2"), [0, 2], decoded(*sounds), None, RATE)
    assert made.goes_on == {}
    assert made.sources == (((0, 2),), (), ())


@pytest.mark.parametrize("size", [0.9, 0.05])
def test_the_snr_is_what_it_says(one_event, size):
    clip = size / 3 * np.random.default_rng(6).standard_normal(2 * RATE).clip(-3, 3)
    only = bank(named("1-0-0-0"), [0], decoded(clip), None, RATE)
    said_db = []
    for seed in range(60):
        made = soundscape(only, 10 * RATE, [seed])
        bed = soundscape(without_sounds(only), 10 * RATE, [seed]).audio
        for event in made.events:
            if bed.any() and event.onset > 0 and event.offset < len(bed) and np.abs(made.audio).max() < 1:
                sound = (made.audio - bed)[event.onset : event.offset]
                snr_db = 10 * np.log10(np.mean(np.square(sound)) / np.mean(np.square(bed)))
                assert snr_db == pytest.approx(event.snr_db, abs=1)
                assert np.abs(sound).max() <= LOUDEST + 1e-4
                said_db.append(event.snr_db)
    assert len(said_db) > 15
    assert SNR_DB[0] <= min(said_db) < 5 < 15 < max(said_db) <= SNR_DB[1]


def test_backgrounds_are_as_loud_as_they_were_recorded_give_or_take_a_gain(street):
    """Quieter than the clips are, they would teach that what is loud is an event."""
    random = np.random.default_rng(8)
    noise = [0.01 * random.standard_normal(3 * RATE) for _ in range(4)]
    quiet, loud = (
        Bank(street.clips, ((), (), ()), {}, decoded(*(gain * each for each in noise), [], [0.1]), RATE) for gain in (1, 4)
    )
    heard_db = []
    for seed in range(40):
        at_one, at_four = (soundscape(bank, 10 * RATE, [seed]).audio for bank in (quiet, loud))
        if at_one.any() and not np.array_equal(at_one, at_four):
            np.testing.assert_allclose(at_four, 4 * at_one, atol=1e-3)
            heard_db.append(10 * np.log10(np.mean(np.square(at_one))))
    assert len(heard_db) > 20
    assert -40 + BED_DB[0] - 12 < min(heard_db) < -50 < -42 < max(heard_db) < -40 + BED_DB[1] + 12


def test_what_is_hardly_louder_than_its_bed_is_faint_and_nothing_else_is(street):
    seen = set()
    for seed in range(40):
        made = soundscape(street, 20 * RATE, [seed])
        for event in made.events:
            middles = np.arange(len(made.faint)) * BLOCK + BLOCK // 2
            inside = (middles >= event.onset) & (middles < event.offset)
            assert (made.faint[inside, event.label] == (event.snr_db < FAINT_DB)).all()
            seen.add(event.snr_db < FAINT_DB)
        assert not made.faint[:, [label for label in range(3) if all(event.label != label for event in made.events)]].any()
    assert seen == {True, False}


def test_a_share_of_the_soundscapes_has_no_event_and_without_sounds_none_has(street):
    empty = sum(not soundscape(street, 5 * RATE, [seed]).events for seed in range(100))
    assert 15 < empty < 50
    nothing = without_sounds(street)
    assert not any(soundscape(nothing, 10 * RATE, [seed]).events for seed in range(10))
    assert not soundscape(Bank(street.clips, (), {}, None, RATE), RATE, [1]).events


def test_the_data_sets_own_clips_make_a_soundscape(tones, noises):
    data = load_dataset(tones)
    clips, beds = decode(data.paths, RATE), decode(sorted(noises.iterdir()), RATE)
    made = [soundscape(bank(data, data.of_folds([1]), clips, beds, RATE), 20 * RATE, [seed]) for seed in range(8)]
    assert {event.label for each in made for event in each.events} == {0, 1, 2}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_files_and_their_events(command, tones, noises, tmp_path):
    out = tmp_path / "street"
    options = ["--data", tones, "--fold", "1", "--fold", "3", "--background", noises, "--count", "12", "--length", "6"]
    said = command("data", "soundscapes", out, *options)
    files, events = rows_of(out / "soundscapes.csv"), rows_of(out / "events.csv")
    assert [row["file"] for row in files] == [f"1-{number:04d}.wav" for number in range(1, 13)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*(row["file"] for row in files), "events.csv", "soundscapes.csv"])
    assert {row["fold"] for row in files} == {"1", "3"}
    assert any(row["events"] == "0" for row in files)
    assert f"{len(events)} events" in said
    for row in files:
        audio, rate = soundfile.read(out / row["file"])
        assert len(audio) / rate == float(row["length_s"]) == 6
        mine = [event for event in events if event["file"] == row["file"]]
        assert len(mine) == int(row["events"])
        assert all(event["fold"] == row["fold"] for event in mine)
        assert all(0 <= float(event["onset_s"]) < float(event["offset_s"]) <= 6 for event in mine)
    assert {event["class"] for event in events} == {"low", "middle", "high"}
    again = tmp_path / "again"
    command("data", "soundscapes", again, *options)
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_a_folder_that_holds_something_is_left_as_it_is(tones, tmp_path):
    (tmp_path / "1-0001.wav").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_soundscapes(tmp_path, tones, [1], count=1, length_s=1.0)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_fold_without_clips_is_named_before_anything_is_written(tones, tmp_path):
    with pytest.raises(InputError, match="fold 9 has no clips"):
        write_soundscapes(tmp_path / "new", tones, [9])
    assert not (tmp_path / "new").exists()


def test_what_stands_out_of_a_bed_and_is_no_event_is_heard_and_changes_no_truth(street):
    hiss = decoded(0.05 * np.random.default_rng(1).standard_normal(10 * RATE))
    over = Bank(street.clips, ((), (), ()), {}, hiss, RATE)
    plain, busy = (np.concatenate([soundscape(over, 60 * RATE, [seed], busy).audio for seed in range(6)]) for busy in (False, True))
    levels_db = [10 * np.log10(np.square(each).reshape(-1, RATE).mean(1) + 1e-12) for each in (plain, busy)]
    assert np.std(levels_db[1]) > np.std(levels_db[0]) + 1
    for seed in range(6):
        made = soundscape(over, 60 * RATE, [seed], busy=True)
        assert not made.events
        assert not made.active.any()
        assert not made.faint.any()
