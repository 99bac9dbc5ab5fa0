"""What the rows that hear annotated recordings promise: the same street for a seed, a label where it was annotated and sounds."""

import numpy as np
import pytest
import soundfile

from detector.errors import ConfigError, InputError
from detector.model import Model
from trainer.data import Decoded
from trainer.recorded import LATE_S, LONGEST_S, annotated, recorded
from trainer.streams import BLOCK

RATE = 8000
LABELS = ("low", "high", "never")
HZ = {"low": 400, "high": 2000}
COLUMNS = "file,class,onset_s,offset_s,fold\n"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two recordings of fold 1 (a tone with a pause in it; a long tone), one of fold 2, in noise 40 dB below."""
    folder, random, rows = tmp_path_factory.mktemp("recordings"), np.random.default_rng(1), []

    def write(name, label, length_s, fold, *events, silent=()):
        audio = 0.001 * random.standard_normal(int(length_s * RATE))
        for onset_s, offset_s in events:
            time = np.arange(round(onset_s * RATE), round(offset_s * RATE))
            audio[time] += 0.1 * np.sin(2 * np.pi * HZ[label] * time / RATE)
            rows.append(f"{name}.wav,{label},{onset_s},{offset_s},{fold}\n")
        for onset_s, offset_s in silent:
            audio[round(onset_s * RATE) : round(offset_s * RATE)] *= 0.01
        soundfile.write(folder / f"{name}.wav", audio, RATE)

    write("a", "low", 9, 1, (1.0, 4.5), (7.0, 8.0), silent=[(2.0, 3.0)])
    write("b", "high", 30, 1, (6.0, 14.0))
    write("c", "high", 3, 2, (1.0, 2.0))
    path = folder / "recordings.csv"
    path.write_text(COLUMNS + "".join(rows))
    return path


@pytest.fixture(scope="module")
def known(table):
    return annotated(table, LABELS, [1], RATE)


def loudness_db(audio, hz):
    """Of one frequency in each block."""
    blocks = audio[: len(audio) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(np.float64)
    wave = np.exp(-2j * np.pi * hz * np.arange(BLOCK) / RATE) * np.hanning(BLOCK)
    return 20 * np.log10(np.abs(blocks @ wave) / BLOCK + 1e-9)


def test_a_label_sounds_where_it_is_annotated_and_heard_and_nowhere_else(known):
    found = np.zeros(2, int)
    for seed in range(12):
        made = recorded(known, None, RATE, 60 * RATE, [seed])
        assert len(made.audio) == 60 * RATE
        for column, label in enumerate(("low", "high")):
            loud = loudness_db(made.audio, HZ[label])
            active, faint = (rows[: len(loud), column] for rows in (made.active, made.faint))
            edge = np.convolve(active, np.ones(3), "same") % 3 > 0  # a block half in an event
            assert (loud[active & ~edge] > -48).all()
            assert (loud[~active & ~faint & ~edge] < -48).all()
            assert not faint[active & ~edge].any()
            found[column] += active.sum()
        assert not made.active[:, 2].any()
    assert (found > 100).all()


def test_a_pause_and_what_follows_a_whole_slice_are_neither_asked_for_nor_forbidden(known):
    paused = late = 0
    for seed in range(12):
        made = recorded(known, None, RATE, 60 * RATE, [seed])
        for event in made.events:
            inside = slice(event.onset // BLOCK + 1, event.offset // BLOCK - 1)
            if event.label == 0 and 3.4 < (event.offset - event.onset) / RATE < 3.6:
                assert made.faint[inside, 0].sum() * BLOCK / RATE == pytest.approx(1.0, abs=0.3)
                paused += 1
            after = (event.offset + np.arange(BLOCK, int(LATE_S * RATE) - BLOCK, BLOCK)) // BLOCK
            if event.label == 1 and event.offset < 50 * RATE and event.offset - event.onset == 8 * RATE:
                late += made.faint[after, 1].mean() > 0.9
    assert paused > 3
    assert late > 3


def test_only_the_recordings_of_the_folds_asked_for_are_heard(table, known):
    assert [len(events) for events in known.events] == [2, 1]
    assert known.by_label == ((0,), (1,), ())
    both = annotated(table, LABELS, [1, 2], RATE)
    assert both.by_label == ((0,), (1, 2), ())
    with pytest.raises(InputError, match=r"recordings\.csv: has no recording of fold 3"):
        annotated(table, LABELS, [3], RATE)


def test_a_street_depends_on_its_seed_alone_and_backgrounds_come_in_between_without_any_event(known):
    hiss = np.round(3000 * np.random.default_rng(2).standard_normal(40 * RATE)).astype(np.int16)
    beds = Decoded(hiss, np.array([0, len(hiss)]))
    one, again, other = (recorded(known, beds, RATE, 100 * RATE, [seed]) for seed in (1, 1, 2))
    assert np.array_equal(one.audio, again.audio)
    assert np.array_equal(one.active, again.active)
    assert not np.array_equal(one.audio, other.audio)
    hissing = loudness_db(one.audio, 3000) > -80
    assert hissing.sum() * BLOCK / RATE > 10
    assert one.active[: len(hissing)][hissing].any(1).mean() < 0.02


def test_a_long_recording_is_heard_around_an_event_and_then_another_comes(known):
    for seed in range(12):
        made = recorded(known, None, RATE, 100 * RATE, [seed])
        onsets = [event.onset / RATE for event in made.events]
        assert np.diff([0, *onsets, 100]).max() < 2 * LONGEST_S


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COLUMNS.replace(",fold", "") + "a.wav,low,0,1\n", "has no column fold"),
        (COLUMNS + "a.wav,siren,0,1,1\n", "class 'siren' is no label"),
        (COLUMNS + "gone.wav,low,0,1,1\n", "gone.wav"),
        (COLUMNS + "a.wav,low,40,41,1\n", "has no event within its recordings of fold 1"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_clear_line(table, text, said):
    path = table.with_name("other.csv")
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        annotated(path, LABELS, [1], RATE)


def test_training_hears_the_recordings_of_its_own_folds_and_the_file_says_so_without_saying_where_they_lie(
    trained, recipe, noises, tmp_path
):
    from trainer.checkpoint import load_checkpoint
    from trainer.data import split
    from trainer.run import run

    time = np.arange(3 * RATE) / RATE
    rows = []
    for fold, (label, hz) in zip((1, 3, 3), {"low": 300, "middle": 900, "high": 2500}.items(), strict=True):
        soundfile.write(tmp_path / f"{label}.wav", 0.3 * np.sin(2 * np.pi * hz * time) * (time >= 1), RATE)
        rows.append(f"{label}.wav,{label},1,3,{fold}\n")
    (tmp_path / "recordings.csv").write_text(COLUMNS + "".join(rows))
    data = {"recordings": str(tmp_path / "recordings.csv"), "background": [str(noises)]}
    how = recipe(data=data, stream={"recorded": 1.0, "soundscapes": 0.5}, train={"epochs": 1})
    result, said = trained(how)
    assert "2 annotated recordings" in said[0]
    assert result.training["data"] == "UrbanSound8K and 5 backgrounds and 2 annotated recordings of its folds"
    without, _ = trained(recipe(data={"background": [str(noises)]}, stream={"soundscapes": 0.5}, train={"epochs": 1}))
    assert any((a != b).any() for a, b in zip(result.model.parameters(), without.model.parameters(), strict=True))

    run(result.model.cfg, result.data, how, split(result.data, None), tmp_path / "out", device="cpu", say=said.append)
    training = Model(tmp_path / "out" / "model.onnx", "cpu").description.properties["training"]
    assert training["recipe"]["data"]["recordings"] == "recordings.csv"
    assert training["recipe"]["data"]["background"] == [noises.name]
    assert str(tmp_path) not in str(training)
    assert training["background_part"] == "ship"
    assert training["data"].startswith("UrbanSound8K and 10 backgrounds")
    assert load_checkpoint(tmp_path / "out" / "model.pt")[1]["training"]["recipe"]["data"]["background"] == [str(noises)]


def test_a_silent_event_is_not_heard(table, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(4 * RATE), RATE)
    (tmp_path / "silent.csv").write_text(COLUMNS + "silent.wav,low,1,2,1\n")
    made = recorded(annotated(tmp_path / "silent.csv", LABELS, [1], RATE), None, RATE, 10 * RATE, [1])
    assert not made.audio.any()
    assert not made.active.any()


def test_recordings_for_a_network_of_whole_clips_are_one_clear_line(trained, recipe, table):
    with pytest.raises(ConfigError, match=r"data\.recordings: are heard in streams"):
        trained(recipe(data={"recordings": str(table)}, train={"loss": "clip"}))
