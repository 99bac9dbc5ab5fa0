import csv
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.cli import cli
from detector.errors import InputError, ModelError
from detector.model import Description, Model, Threshold
from detector.scan import scan
from detector.tracker import Tracker
from trainer import evaluation, stream_metrics, stream_report
from trainer.cfg import load_cfg
from trainer.crnn import CRNN
from trainer.data import background_files, load_dataset
from trainer.exporter import export
from trainer.hearing import Told, told
from trainer.levels import SHIFTS, Level, lowest_within, shifted
from trainer.robustness import CONDITIONS
from trainer.stream_evaluation import evaluate_streams
from trainer.stream_metrics import (
    Counts,
    Truth,
    calibration_error,
    collar_counts,
    detection,
    intersection_counts,
    poisson_bound,
    psds,
    segment_counts,
)
from trainer.stream_sounds import load_recordings, synthetic_sounds

LABELS = ("low", "middle", "high")
RATE = 8000
HEADER = ["file", "class", "onset_s", "offset_s", "fold"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Less of everything that is made."""
    monkeypatch.setattr("trainer.stream_evaluation.SYNTHETIC_S", 4.0)
    monkeypatch.setattr("trainer.stream_sounds.SOUNDSCAPES", 4)


@pytest.fixture(scope="module")
def written():
    """Models written so far, for each takes a while."""
    return {}


@pytest.fixture
def model_file(cfg_file, tmp_path_factory, written):
    """A network that has learnt nothing, and tells of a label when its score reaches `on`."""

    def write(on=0.5, trained_on=(), shipped_with=()):
        if (on, trained_on, shipped_with) in written:
            return written[on, trained_on, shipped_with]
        path = written[on, trained_on, shipped_with] = tmp_path_factory.mktemp("model") / "tones.onnx"
        torch.manual_seed(1)
        network = CRNN(load_cfg(cfg_file)).eval()
        for parameter in network.layers["linear_0"].parameters():
            parameter.data *= 8  # answers that differ
        thresholds = {label: {"on": on, "off": on / 2, "min_on_s": 0.1, "min_off_s": 0.2} for label in LABELS}
        export(
            network,
            path,
            labels=LABELS,
            thresholds=thresholds,
            training={
                "folds": {"train": list(trained_on), "validation": [], "test": []},
                "recipe": {"data": {"background": list(shipped_with)}},
                "background_part": "ship" if shipped_with else "train",
            },
        )
        return path

    return write


@pytest.fixture
def table(tmp_path):
    """Recordings of 3 s with a tone in the middle, in folds 1 and 2, and their table."""
    rows = []
    for fold, (label, hz) in zip((1, 1, 2), {"low": 300, "middle": 900, "high": 2500}.items(), strict=True):
        time = np.arange(3 * RATE) / RATE
        tone = 0.3 * np.sin(2 * np.pi * hz * time) * ((time >= 1) & (time < 2))
        soundfile.write(tmp_path / f"{label}.wav", tone + 0.01 * np.random.default_rng(fold).standard_normal(len(time)), RATE)
        rows.append([f"{label}.wav", label, 1.0, 2.0, fold])
    return write_table(tmp_path / "recordings.csv", HEADER, rows)


def write_table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def spans(longest):
    """Events of one label in tenths of a second, none touching the next."""
    edges = st.lists(st.integers(0, longest), max_size=16, unique=True).map(sorted)
    return edges.map(lambda at: [(a / 10, b / 10) for a, b in zip(at[::2], at[1::2], strict=False)])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.fixed_dictionaries({label: st.tuples(spans(80), spans(80)) for label in LABELS}), min_size=1, max_size=3))
def test_the_f1s_of_told_events_are_those_of_sed_scores_eval(recordings):
    sed = pytest.importorskip("sed_scores_eval")
    recordings = [dict.fromkeys(LABELS, ([(1.0, 2.0)], [])), *recordings]  # it wants an event of every label
    tables, truth, lengths = {}, {}, {}
    for number, labels in enumerate(recordings):
        sounds = np.zeros((80, len(LABELS)))
        for column, label in enumerate(LABELS):
            for onset, offset in labels[label][1]:
                sounds[round(onset * 10) : round(offset * 10), column] = 1
        frame = sed.base_modules.scores.create_score_dataframe(sounds, np.arange(81) / 10, LABELS)
        tables[str(number)], lengths[str(number)] = frame, 8.0
        truth[str(number)] = [(on, off, label) for label, (known, _) in labels.items() for on, off in known]
    how = {"dtc_threshold": 0.5, "gtc_threshold": 0.5}
    expected = (
        (
            lambda known, told: segment_counts(known, told, 8.0),
            sed.segment_based.fscore(tables, truth, lengths, 0.5, segment_length=1.0),
        ),
        (collar_counts, sed.collar_based.fscore(tables, truth, 0.5, onset_collar=0.2, offset_collar=1e9)),
        (intersection_counts, sed.intersection_based.fscore(tables, truth, 0.5, **how)),
    )
    for count, (f1, _, _, statistics) in expected:
        for label in LABELS:
            counts = sum((count(*labels[label]) for labels in recordings), Counts(0, 0, 0))
            expected_counts = (statistics[label][name] for name in ("tps", "fps", "n_ref"))
            assert counts == Counts(*expected_counts)
            assert counts.f1 == pytest.approx(f1[label])


def test_scores_that_are_the_truth_have_a_psds_of_one_and_labels_that_never_occur_do_not_count():
    pytest.importorskip("sed_scores_eval")
    truth = [[Truth("low", 1.0, 2.0), Truth("high", 3.0, 4.0)]]
    scores = np.full((50, 3), 0.1, np.float32)
    scores[10:20, 0] = scores[30:40, 2] = 0.9
    assert psds([scores], truth, [5.0], LABELS, 0.1) == pytest.approx({"psds_1": 1.0, "psds_2": 1.0})
    late = np.roll(scores, 5, axis=0)
    found = psds([late], truth, [5.0], LABELS, 0.1)
    assert found["psds_1"] == 0
    assert found["psds_2"] == 1
    assert psds([scores], [[]], [5.0], LABELS, 0.1) == {"psds_1": 0.0, "psds_2": 0.0}


@pytest.mark.parametrize(("count", "bound"), [(0, 2.9957), (1, 4.7439), (2, 6.2958), (10, 16.9622), (100, 118.0793)])
def test_the_poisson_bound_is_that_of_the_tables(count, bound):
    assert poisson_bound(count) == pytest.approx(bound, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 300))
def test_so_few_events_have_a_chance_of_five_percent_at_the_poisson_bound(count):
    bound = poisson_bound(count)
    chance = math.fsum(math.exp(k * math.log(bound) - bound - math.lgamma(k + 1)) for k in range(count + 1))
    assert chance == pytest.approx(0.05, abs=1e-6)


def test_latency_runs_from_the_known_onset_to_the_start_message_of_the_first_event_that_overlaps():
    truth = [[Truth("low", 10.0, 20.0)], [Truth("low", 5.0, 6.0)], [Truth("low", 5.0, 6.0)], [Truth("high", 0.0, 1.0)]]
    told = [
        [Told("low", 8.0, 9.0, 8.2, 1.0), Told("low", 12.0, 13.0, 12.4, 1.0), Told("low", 10.5, 11.0, 11.0, 1.0)],
        [Told("low", 1.0, 9.0, 1.2, 1.0)],  # told of something else long before: found, but not timed
        [Told("low", 4.6, 7.0, 4.8, 1.0)],  # a little early is on time
        [Told("low", 0.0, 1.0, 0.2, 1.0)],
    ]
    low = detection(truth, told, "low")
    assert (low.events, low.found, low.timed) == (3, 3, 2)
    assert low.onset_error_s == pytest.approx((0.5 - 0.4) / 2)
    assert low.onset_distance_s == pytest.approx(0.45)
    assert low.latency_s == pytest.approx(0.5)
    assert low.latency_p95_s == pytest.approx(0.95)
    assert detection(truth, told).recall == 0.75
    assert detection(truth, told, "high").latency_s is None


def test_the_calibration_error_pools_rows_and_labels_in_bins_of_equal_width():
    random = np.random.default_rng(1)
    scores = random.random((500, 3)).astype(np.float32)
    sounds = random.random((500, 3)) < scores**2
    bins = [(scores > i / 15) & (scores <= (i + 1) / 15) for i in range(15)]
    expected = sum(abs(sounds[inside].sum() - scores[inside].sum()) for inside in bins) / scores.size
    assert calibration_error(scores, sounds) == pytest.approx(expected)
    assert calibration_error(sounds.astype(np.float32), sounds) == 0


def test_synthetic_sounds_have_the_levels_that_they_are_said_to_have():
    levels = {name: [20 * np.log10(np.std(make()) + 1e-12) for make in makes] for name, makes in synthetic_sounds(RATE, 4.0, 1)}
    assert levels.pop("digital silence") == pytest.approx([-240])
    assert sorted(round(level) for found in levels.values() for level in found) == [-60] * 2 + [-40] * 4 + [-20] * 4
    again = [make() for _, makes in synthetic_sounds(RATE, 4.0, 1) for make in makes]
    for one, other in zip(again, (make() for _, makes in synthetic_sounds(RATE, 4.0, 1) for make in makes), strict=True):
        np.testing.assert_array_equal(one, other)


def test_conditions_do_what_their_names_say(tmp_path):
    time = np.arange(2 * RATE) / RATE
    tones = [0.25 * np.sin(2 * np.pi * hz * time) for hz in (100, 1000, 3600)]
    soundfile.write(tmp_path / "tones.wav", sum(tones), RATE, subtype="FLOAT")
    heard = {condition.name: condition.read(tmp_path / "tones.wav", RATE, [1]) for condition in CONDITIONS}
    clean = heard.pop("clean")
    assert all(audio.dtype == np.float32 and abs(len(audio) - len(clean)) <= 1 for audio in heard.values())
    np.testing.assert_allclose(heard["-20 dB"], clean / 10, atol=1e-7)
    np.testing.assert_allclose(heard["+10 dB, clipped"], np.clip(clean * 10**0.5, -1, 1), atol=1e-6)
    assert np.abs(heard["telephone band"] - tones[1]).max() < 1e-3
    for rate in ("16 kHz source", "48 kHz source"):
        assert np.abs(heard[rate][200:-200] - (tones[0] + tones[1] + tones[2])[200:-200]).max() < 0.05
    blocks = heard["10 % of blocks lost"].reshape(-1, 160)
    lost = ~blocks.any(axis=1)
    assert 3 <= lost.sum() <= 20
    np.testing.assert_array_equal(blocks[~lost], clean.reshape(-1, 160)[~lost])
    again = CONDITIONS[-1].read(tmp_path / "tones.wav", RATE, [1])
    np.testing.assert_array_equal(again, blocks.ravel())


def test_the_figures_are_those_of_the_daemons_own_scan_and_of_plain_evaluate_and_the_same_every_time(
    model_file, tones, noises, table
):
    model, data = Model(model_file(0.6), "cpu"), load_dataset(tones)
    report = evaluate_streams(model, data=data, recordings=table, quiet=[noises], folds=[1], robust=True)
    assert report == evaluate_streams(model, data=data, recordings=table, quiet=[noises], folds=[1], robust=True)
    assert report.folds == (1,)

    known = load_recordings(table, LABELS, [1])
    hits = [
        any(e.label == one.events[0].label and e.onset_s < 2 and e.offset_s > 1 for e in scan(one.path, model)) for one in known
    ]
    assert (report.recorded.recordings, report.recorded.with_event) == (2, sum(hits))
    assert report.recorded.overall.found == sum(hits)
    files = background_files([noises], "test")
    alarms = [found for path in files for found in scan(path, model)]
    quiet = report.quiet[0]
    assert (quiet.name, quiet.sounds, quiet.events) == (noises.name, len(files), len(alarms))
    assert quiet.hours == pytest.approx(2 * len(files) / 3600)
    assert quiet.at_most_per_hour == pytest.approx(poisson_bound(len(alarms)) / quiet.hours)

    clean = report.robust[0]
    assert [one.condition for one in report.robust] == [condition.name for condition in CONDITIONS]
    assert clean.accuracy == pytest.approx(evaluation.evaluate(model, data, [1]).accuracy)
    assert (clean.recall, clean.false_per_hour) == (report.recorded.overall.recall, quiet.per_hour)

    scenes = report.scenes
    assert scenes.soundscapes == 4
    assert scenes.hours == pytest.approx(160 / 3600)
    assert scenes.overall.events == sum(one.detection.events for one in scenes.per_label.values()) > 0
    assert 0 <= scenes.ece <= 1
    assert scenes.macro["segment_f1"] == pytest.approx(np.mean([one.segment_f1 for one in scenes.per_label.values()]))
    other = evaluate_streams(model, data=data, quiet=[noises], folds=[1], seed=2)
    assert other.scenes != scenes
    assert (other.recorded, other.robust) == (None, ())


def test_the_same_model_at_other_levels_tells_what_a_model_with_those_thresholds_does(model_file, tones, noises, table):
    model, how = Model(model_file(0.6), "cpu"), {"data": load_dataset(tones), "recordings": table, "quiet": [noises], "folds": [1]}
    report = evaluate_streams(model, **how)
    assert [level.shift for level in report.levels] == list(SHIFTS)
    own, other = (next(level for level in report.levels if level.shift == shift) for shift in (0, -0.5))
    model.description = replace(model.description, thresholds=shifted(model.description.thresholds, -0.5))
    for level, figures in ((own, report), (other, evaluate_streams(model, **how))):
        quiet, scenes = figures.quiet[0], figures.scenes
        assert (level.events, level.per_hour, level.at_most_per_hour) == (quiet.events, quiet.per_hour, quiet.at_most_per_hour)
        assert (level.recorded_recall, level.scenes_recall) == (figures.recorded.overall.recall, scenes.overall.recall)
        assert level.scenes_f1 == pytest.approx(scenes.macro["intersection_f1"])
    assert own != other
    assert evaluate_streams(model, recordings=table).levels == ()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-4, 4))
def test_moved_thresholds_are_still_thresholds_and_those_not_moved_the_same(one, other, by):
    threshold = Threshold(max(one, other), min(one, other), 0.1, 0.2)
    moved = shifted({"a": threshold}, by)["a"]
    assert 0 <= moved.off <= moved.on <= 1
    assert (moved.min_on_s, moved.min_off_s) == (0.1, 0.2)
    assert shifted({"a": threshold}, 0.0)["a"] == threshold
    if 0.01 < threshold.on < 0.99:
        logits = [math.log(level / (1 - level)) for level in (threshold.on, moved.on)]
        assert logits[1] - logits[0] == pytest.approx(by, abs=1e-9)


def test_a_level_far_below_at_which_events_have_grown_together_is_not_one_with_few_false_ones():
    levels = [Level(shift, events, float(events), 0.0, None, None, None) for shift, events in enumerate((2, 60, 9, 4, 4, 0))]
    assert [lowest_within(levels, most).shift for most in (0, 3, 5, 20, 100)] == [5, 5, 3, 2, 0]
    assert lowest_within([levels[1]], 10) is None


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.9]), min_size=3, max_size=3), max_size=70),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_what_is_told_of_many_rows_is_what_the_tracker_tells_row_by_row(rows, hold, pause):
    scores = np.array(rows, np.float32).reshape(-1, 3)
    d = Description("", "", "", RATE, 800, 0, LABELS, {label: Threshold(0.5, 0.25, hold, pause) for label in LABELS}, "mean", {})
    tracker, started, expected = Tracker(LABELS, d.thresholds, d.hop, RATE), {}, []
    for row in range(len(scores) + 1):
        last = row == len(scores)
        changes = tracker.close(row * d.hop) if last else tracker.update(row * d.hop, scores[row : row + 1], [0.0])
        started |= {change.label: (row + 1) * d.hop / RATE for change in changes if change.phase == "start"}
        ended = [change for change in changes if change.phase == "end"]
        expected += [Told(c.label, c.onset / RATE, c.offset / RATE, started[c.label], c.score) for c in ended]
    assert told(scores, d) == sorted(expected, key=lambda event: event.onset_s)


@pytest.mark.parametrize(("on", "events"), [(1e-9, 3), (1.0, 0)])
def test_an_event_on_digital_silence_is_counted(model_file, on, events):
    report = evaluate_streams(Model(model_file(on), "cpu"))
    silence = next(one for one in report.quiet if one.name == "digital silence")
    assert (silence.events, sum(silence.per_label.values())) == (events, events)
    assert report.quiet[-1].name == "all synthetic sound"
    assert report.quiet[-1].events == sum(one.events for one in report.quiet[:-1])


def test_the_command_tells_people_in_tables_and_programs_in_json(command, model_file, tones, noises, table):
    arguments = ["evaluate", model_file(0.6, (1,)), "--streams", "--data", tones, "--fold", 1, "--recordings", table]
    arguments += ["--quiet", noises, "--robust"]
    warning, *lines = command(*arguments).splitlines()
    assert warning.endswith("tones.onnx was trained or chosen on fold 1: this is no honest test")
    heads = [line.split("  ")[0] for line in lines]
    assert lines[0].startswith("tones 0.1.0, sha256 ")
    for head in (
        "2 recordings",
        "4 soundscapes of 40 s",
        "macro",
        "false events on",
        "digital silence",
        "heard as",
        "telephone band",
        "the same model at other levels",
        "its own",
    ):
        assert head in heads
    said = json.loads(command(*arguments, "--json").splitlines()[-1])
    assert said["model"]["sha256"] == Model(arguments[1], "cpu").description.sha256
    assert (said["folds"], said["seed"]) == ([1], 1)
    assert said["recorded"]["overall"]["events"] == 2
    assert len(said["robust"]) == len(CONDITIONS)
    assert [level["shift"] for level in said["levels"]] == list(SHIFTS)
    assert "example" not in said


@pytest.mark.parametrize(
    ("shipped_with", "warns"), [((), False), (("/elsewhere/rain",), False), (("/elsewhere/background",), True)]
)
def test_false_events_on_backgrounds_that_a_shipped_model_was_trained_on_are_no_test(
    command, model_file, tmp_path, shipped_with, warns
):
    folder = tmp_path / "background"
    folder.mkdir()
    for index in range(12):
        soundfile.write(folder / f"{index}-A.wav", np.zeros(RATE), RATE)
    said = command("evaluate", model_file(0.6, (), shipped_with), "--streams", "--quiet", folder)
    assert (f"was trained on {folder}: its false events there are no honest test" in said) == warns


def test_the_command_draws_the_levels_and_a_soundscape(command, model_file, tones, noises, tmp_path):
    picture = tmp_path / "streams.png"
    said = command("evaluate", model_file(0.6), "--streams", "--data", tones, "--quiet", noises, "--plot", picture)
    assert "soundscapes" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_sed_scores_eval_all_but_psds_is_told_and_one_line_says_how_to_install_it(model_file, tones, monkeypatch):
    monkeypatch.setattr(stream_metrics, "find_spec", lambda name: None)
    model = Model(model_file(), "cpu")
    report = evaluate_streams(model, data=load_dataset(tones))
    assert report.folds == (1, 2, 3, 4)
    assert report.scenes.psds is None
    said = stream_report.text(report, model.description)
    assert said.count("-m pip install 'urbandetect[eval]'") == 1
    assert "onset F1" in said
    assert stream_report.as_json(report, model.description)["scenes"]["psds"] is None


def test_streams_are_evaluated_without_torch(model_file, table):
    command = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; from detector.cli import main; main()"]
    patch = "import trainer.stream_evaluation as e; e.SYNTHETIC_S = 1.0; "
    command[2] = command[2].replace("from detector", patch + "from detector")
    command += ["evaluate", str(model_file()), "--streams", "--recordings", str(table), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["recorded"]["recordings"] == 3


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            ["file", "class", "onset_s"],
            ["low.wav", "low", 1],
            "has no column offset_s, fold; it needs file, class, onset_s, offset_s",
        ),
        (HEADER, ["low.wav", "low", "soon", 2, 1], ":2: onset_s, offset_s and fold must be numbers"),
        (HEADER, ["low.wav", "low", 2, 1, 1], ":2: an event must begin at 0 s or later, and end after that"),
        (HEADER, ["", "low", 1, 2, 1], ":2: names no file"),
        (HEADER, ["low.wav", "whale", 1, 2, 1], ":2: class 'whale' is no label of the model; it has low, middle, high"),
        (HEADER, ["low.wav", "low", 1, 2, 2], "has no recording of fold 1"),
        (HEADER, ["gone.wav", "low", 1, 2, 1], "gone.wav: no such file"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(model_file, tmp_path, header, row, said):
    path = write_table(tmp_path / "bad.csv", header, [row])
    with pytest.raises(InputError) as error:
        evaluate_streams(Model(model_file(), "cpu"), recordings=path, folds=[1])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "--recordings", "gone.csv"], "gone.csv: cannot be read (No such file or directory)"),
        (["--streams", "--robust"], "--robust: has nothing to hear; give --data, --recordings or --quiet"),
        (["--streams", "--plot", "x.png"], "--plot: has nothing to draw; give --data, or --recordings with --quiet"),
        (["--streams", "--plot", "x.txt", "--data", "gone"], "x.txt: .txt is not a kind of picture known here"),
        (["--streams", "--quiet", "gone"], "gone: holds no audio file"),
        (["--robust", "--fold", "1"], "--recordings, --quiet and --robust: go with --streams; add it"),
    ],
)
def test_wrong_arguments_are_one_line(model_file, arguments, said):
    with pytest.raises(InputError) as error:
        CliRunner().invoke(cli, ["evaluate", str(model_file()), *arguments], catch_exceptions=False, standalone_mode=False)
    assert said in str(error.value)


def test_a_file_that_is_no_onnx_model_is_one_line(tmp_path, command):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad.onnx: is not a readable ONNX model"):
        command("evaluate", tmp_path / "bad.onnx", "--streams")
    with pytest.raises(InputError, match=r"model.pt: is no ONNX file; write one: urbandetect export"):
        command("evaluate", tmp_path / "model.pt", "--streams")


def test_without_streams_a_fold_is_still_asked_for(command, tmp_path):
    assert "Missing option '--fold'" in command("evaluate", tmp_path / "model.onnx")
