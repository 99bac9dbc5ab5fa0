import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from parts import as_nobody

import detector
from detector.config import ThresholdSettings, load_settings
from detector.errors import ConfigError, InputError
from detector.model import Model, Threshold
from detector.score_file import About, Part, block, pack_numbers
from detector.score_log import Folder
from trainer.cfg import load_cfg
from trainer.cli_tune import rate_per_hour
from trainer.crnn import CRNN
from trainer.data import background_files
from trainer.exporter import export
from trainer.heard import too_many
from trainer.hearing import scores_of
from trainer.tuning import quiet_files, scores_of_file

STREET = Path(detector.__file__).parent / "demo" / "street.ogg"


@pytest.fixture
def street(tmp_path):
    """Two minutes at the loudness model's rate: 0.1, and once in 10 s for a row a little more."""
    folder = tmp_path / "street"
    folder.mkdir()
    random = np.random.default_rng(1)
    for name in ("one.wav", "two.flac"):
        rows = np.full(600, 0.1)
        rows[50::100] = 0.1 + random.uniform(0.1, 0.3, 6)
        soundfile.write(folder / name, np.repeat(rows, 800), 8000)
    return folder


def of_model(path):
    """The graph's bytes, and what the file says of itself."""
    proto = onnx.load(path)
    return proto.graph.SerializeToString(), json.loads(proto.metadata_props[0].value)


def test_the_model_that_is_written_is_the_old_one_but_for_thresholds_and_their_rate(loudness_model, street, command, tmp_path):
    out = tmp_path / "new.onnx"
    said = command("tune", loudness_model, "--target", "2400/day", "--quiet", street, "--out", out)
    (old_graph, old), (new_graph, new) = of_model(loudness_model), of_model(out)
    assert new_graph == old_graph
    assert new["training"] == {"false_events_per_hour": 100.0}
    thresholds = new.pop("thresholds")
    assert {**new, "training": {}} == {key: value for key, value in old.items() if key != "thresholds"}
    assert {**thresholds["loud"], "on": 0, "off": 0} == {"on": 0, "off": 0, "min_on_s": 0.1, "min_off_s": 0.2}
    assert 0.4 < thresholds["loud"]["on"] <= 1
    assert thresholds["loud"]["off"] == pytest.approx(thresholds["loud"]["on"] / 2)
    Model(out, "cpu")
    assert f"wrote {out}" in said
    assert "counted in 2 min of quiet sound, which alone shows at most" in said


@pytest.mark.parametrize("quiet", ["--quiet", "--label=loud"], ids=["quiet", "told"])
def test_sound_too_short_for_a_rate_supports_no_threshold_and_the_time_it_takes_is_said(
    loudness_model, street, command, tmp_path, quiet
):
    """Told are twelve events in two minutes; a week's one, told from two minutes, would be a guess."""
    (tmp_path / "detector.toml").write_text("[thresholds.loud]\non = 0.15")
    with pytest.raises(InputError) as error:
        command("tune", "--model", loudness_model, "--target", "1/week", quiet, street, "--out", tmp_path / "new.onnx")
    takes = {"--quiet": "33.6 h", "--label=loud": "16.8 h"}[quiet]
    assert str(error.value).startswith(f"tune: 2 min of sound supports no threshold for so few events; it takes {takes} of it")
    assert not (tmp_path / "new.onnx").exists()
    command("tune", "--model", loudness_model, "--target", "60/h", quiet, street)


def test_a_label_that_no_threshold_keeps_to_its_share_is_said_and_stays(log, command):
    """A dog that barks all day, as loud as can be: no line would do but one that mutes it."""
    rows = peaks(100)
    rows[rows >= 0.5] = 1.0
    said = command("tune", log(rows, "2026-11-25T20:00Z"), "--target", "2/h")
    assert "warning: loud: no threshold keeps it to its share of the target; it stays as it is" in said
    assert "100 events told at the thresholds now in force, 100 at the new ones" in said
    assert "2400 a day expected over all labels in the long run, 48 wanted; 100 counted, which alone shows at most 2" in said
    assert "[thresholds" not in said
    assert (
        json.loads(command("tune", log(rows, "2026-11-25T22:00Z"), "--target", "2/h", "--json").split("\n")[-2])["thresholds"] == {}
    )


def test_no_file_is_written_that_would_promise_what_no_threshold_keeps(log, command, loudness_model, tmp_path):
    rows = peaks(100)
    rows[rows >= 0.5] = 1.0
    heard, out = log(rows, "2026-11-25T20:00Z"), tmp_path / "new.onnx"
    said = "loud: no threshold keeps it to its share of the target; more sound, a higher --target"
    for more in (("--model", loudness_model, "--out", out), ("--quiet", "2026-11-25T20:00Z/2026-11-26T20:00Z", "--label", "loud")):
        with pytest.raises(InputError, match=said):
            command("tune", heard, "--target", "2/h", *more)
    assert not out.exists()


def test_no_expected_rate_is_above_what_the_count_is_said_to_show_at_most(command, tmp_path):
    for name in ("a.ogg", "b.ogg"):
        shutil.copy(STREET, tmp_path / name)
    told = {target: command("tune", tmp_path, "--target", target).split("\n\n")[0] for target in ("100/h", "60/h")}
    assert told["100/h"].endswith(" a day expected over all labels in the long run, 2400 wanted; 0 counted")
    assert re.search(r"1440 wanted; 0 counted, which alone shows at most 2157 a day \(95 %\)$", told["60/h"])


def test_recordings_in_a_folder_are_those_that_scan_hears(street, tmp_path):
    soundfile.write(street / "three.mp3", np.zeros(8000), 8000)
    (street / ".Trash-1000").mkdir()
    (street / "one.wav").rename(street / ".Trash-1000" / "one.wav")
    (street / "two.flac").rename(street / ".hidden.flac")
    assert quiet_files([street], {}) == ([street / "three.mp3"], [])


def test_a_folder_that_may_not_be_read_is_what_is_said(shipped_model):
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "street" / "closed"
        folder.mkdir(parents=True)
        folder.chmod(0o000)
        command = [sys.executable, "-c", "from detector.cli import main; main()", "tune", "--target", "1/h", "--quiet"]
        for given in (folder, folder.parent):
            done = subprocess.run([*as_nobody(), *command, given], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (
                64,
                f"urbandetect: {folder}: cannot be read (Permission denied); are its name and the permissions right?\n",
            )
        folder.chmod(0o755)


def test_where_to_look_at_what_was_told_depends_on_what_was_heard(loudness_model, street, log, command):
    assert "`urbandetect scan` says when they are" in command("tune", "--model", loudness_model, street, "--target", "200/h")
    assert "`urbandetect explain EVENT_ID` shows one" in command("tune", log(peaks(5), "2026-11-25T20:00Z"), "--target", "20/h")


def test_without_out_nothing_is_written_and_detector_toml_takes_the_lines(loudness_model, street, command, tmp_path):
    before = loudness_model.read_bytes()
    said = command("tune", loudness_model, "--target", "60/h", "--quiet", street / "one.wav")
    settings = tmp_path / "detector.toml"
    settings.write_text(said[said.index("[thresholds") :])
    loud = load_settings(settings)[0].thresholds["loud"]
    assert isinstance(loud, ThresholdSettings)
    assert loud.on > 0.4
    assert (loud.min_on_s, loud.min_off_s) == (0.1, 0.2)
    assert list(tomllib.loads(settings.read_text())["thresholds"]) == ["loud", "so_far"]
    assert loudness_model.read_bytes() == before


def test_with_soundscapes_the_times_are_chosen_too_and_the_recall_is_told(tones, noises, cfg_file, command, tmp_path):
    model = tmp_path / "tones.onnx"
    export(CRNN(load_cfg(cfg_file)), model, labels=("low", "middle", "high"), training={"folds": {"train": [4]}})
    tuned = ("tune", model, "--target", "9000/h", "--quiet", noises, "--data", tones, "--fold")
    said = json.loads(command(*tuned, 1, "--json").split("\n")[-2])
    assert said["thresholds"].keys() == said["expected"].keys() == said["heard_before"].keys() == {"low", "middle", "high"}
    assert 0 <= said["expected"]["low"]["heard"]["recall"] <= 1
    assert said["out"] is None
    assert "was trained on fold 4" in command(*tuned, 4)


def test_of_a_background_the_model_was_trained_with_only_the_part_for_choosing_counts(noises):
    trained = {"recipe": {"data": {"background": [f"/elsewhere/{noises.name}"]}}}
    for_choosing = background_files([noises], "choose")
    assert quiet_files([noises], trained) == (for_choosing, [noises])
    assert quiet_files([noises], {}) == (sorted(noises.iterdir()), [])
    files = sorted(noises.iterdir())
    assert quiet_files([*files, files[0]], trained) == (for_choosing, [noises])
    with pytest.raises(InputError, match="are all of the part the model was trained with"):
        quiet_files([each for each in files if each not in for_choosing], trained)


def test_a_file_read_piece_by_piece_scores_as_one_that_is_read_whole(loudness_model, tmp_path):
    model = Model(loudness_model, "cpu")
    audio = np.random.default_rng(1).uniform(-0.5, 0.5, 70_001)
    soundfile.write(tmp_path / "a.wav", audio, 8000, subtype="FLOAT")
    scores = scores_of_file(model, tmp_path / "a.wav")
    assert len(scores) == 88
    np.testing.assert_allclose(scores, scores_of(model, audio.astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize(("text", "per_hour"), [("2/h", 2), ("0.5/day", 0.5 / 24), (".5 / week", 0.5 / 168), ("24./day", 1)])
def test_a_rate_is_read_in_its_unit(text, per_hour):
    assert rate_per_hour(text) == pytest.approx(per_hour)


@pytest.mark.parametrize("text", ["0/day", "-1/h", "2", "1/month", "nan/h", "1e3/h", ""])
def test_what_is_no_rate_is_said(text):
    with pytest.raises(InputError, match=r"--target: .* is no rate above 0; give one like 0.5/day"):
        rate_per_hour(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--quiet", "nowhere"), "nowhere: cannot be read (No such file or directory)"),
        (("--quiet", "empty"), "empty: holds no recording; a recording in a folder ends in "),
        (("--quiet", "text.wav"), "text.wav: is not an audio file"),
        (("--quiet", "none.wav"), "none.wav: holds no sample"),
        (("--quiet", "street", "--fold", 1), "--data and --fold: go together"),
        (("--quiet", "street", "--out", "new.pt"), "new.pt: is no name for a model"),
        (("--quiet", "street", "--data", "TONES", "--fold", 1), "knows loud, so_far; the data set has low, middle, high"),
    ],
)
def test_what_cannot_be_tuned_with_is_one_clear_line(loudness_model, street, tones, command, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    given = [tones if each == "TONES" else each for each in given]
    with pytest.raises(InputError) as error:
        command("tune", loudness_model, "--target", "1/h", *given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_model_is_said(street, command):
    with pytest.raises(ConfigError, match="is not a readable ONNX model"):
        command("tune", "--model", street / "one.wav", "--target", "1/h", "--quiet", street)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 100), min_size=1), st.floats(0.01, 300))
def test_labels_that_keep_to_their_share_stay_and_the_others_share_what_is_left(a_day, target):
    loud, left = too_many(a_day, target)
    stay = {label: rate for label, rate in a_day.items() if label not in loud}
    assert left == pytest.approx(target - sum(stay.values()), abs=1e-9)
    if not loud:
        assert sum(a_day.values()) <= target * (1 + 1e-9)
    else:
        assert all(a_day[label] > left / len(loud) > 0 for label in loud)
        assert all(rate <= left / len(loud) * (1 + 1e-9) for rate in stay.values())


@pytest.fixture
def log(loudness_model, tmp_path):
    """Writes scores of `loud` into a folder of logs, from a time on, as if heard by this model or another."""
    d = Model(loudness_model, "cpu").description

    def write(loud, begins, session="01", sha256=d.sha256, thresholds=d.thresholds):
        folder = tmp_path / "logs"
        about = About("street", "mic1", "loudness 1", sha256, d.labels, d.hop, d.sample_rate, None)
        scores = np.column_stack([loud, np.zeros(len(loud))]).astype(np.float32)
        packed = pack_numbers(scores, np.full(len(loud), -40.0))
        part = Part(session, 0, datetime.fromisoformat(begins).timestamp() + 0.1, len(loud), thresholds, (), packed)
        Folder(folder, 10**9, 1e9).write(about, block(part))
        return folder

    return write


def peaks(count, hours=1.0):
    """Rows of 0.1 s, so many of them above 0.5 and apart, the rest at 0.1 to 0.2."""
    random = np.random.default_rng(4)
    rows = random.uniform(0.1, 0.2, round(hours * 36_000))
    rows[50 :: len(rows) // count][:count] = random.uniform(0.5, 0.98, count)
    return rows


def test_of_score_logs_labels_told_too_often_are_raised_and_no_other(log, command, tmp_path):
    folder = log(peaks(100), "2026-11-25T20:00Z")
    said = json.loads(command("tune", folder, "--target", "20/h", "--json").split("\n")[-2])
    assert list(said["thresholds"]) == ["loud"]
    assert said["told"]["so_far"] == [0, 0]
    assert said["told"]["loud"][0] == 100
    assert 10 <= said["told"]["loud"][1] <= 20
    assert said["told_events_per_hour"] == 20
    assert "false_events_per_hour" not in said
    assert said["hours"] == pytest.approx(1)
    text = command("tune", folder, "--target", "20/h")
    assert "mic1 from 2026-11-25T20:00Z to 2026-11-25T21:00Z" in text
    assert "so_far                  1 stays" in text
    settings = tmp_path / "detector.toml"
    settings.write_text(text[text.index("[thresholds") :])
    assert list(load_settings(settings)[0].thresholds) == ["loud"]


def test_what_keeps_to_its_target_is_left_as_it_is_and_that_is_said(log, command):
    said = command("tune", log(peaks(5), "2026-11-25T20:00Z"), "--target", "20/h")
    assert "nothing to change: 480 a day are wanted" in said
    assert "[thresholds" not in said


def test_a_time_that_was_quiet_in_the_logs_is_what_false_events_are_told_by(log, command):
    log(peaks(400), "2026-11-25T20:00Z")
    folder = log(peaks(10), "2026-11-26T02:00Z", "02")
    told = ("--target", "5/h", "--label", "loud", "--json")
    said = json.loads(command("tune", folder, "--quiet", "2026-11-26T03:00+01:00/2026-11-26T03:30:00+00:00", *told).split("\n")[-2])
    assert said["quiet_hours"] == pytest.approx(1)
    assert said["expected"]["loud"]["counted"] <= 5
    assert said["heard"]["told"]["loud"][0] == 410
    assert said["heard"]["told"]["loud"][1] > 20
    assert said["false_events_per_hour"] == 5


def test_a_cool_down_in_force_is_kept_and_counted_with(log, command, loudness_model):
    own = Model(loudness_model, "cpu").description.thresholds
    cool = own | {"loud": Threshold(0.5, 0.25, 0.1, 0.2, 300.0)}
    text = command("tune", log(peaks(100), "2026-11-25T20:00Z", thresholds=cool), "--target", "5/h")
    assert re.search(r": 1[0-3] events told at the thresholds now in force", text)
    assert "cooldown_s = 300.0" in text


def test_thresholds_of_the_night_are_not_taken_for_those_in_force(log, command, loudness_model):
    own = Model(loudness_model, "cpu").description.thresholds
    log(peaks(100), "2026-11-25T20:00Z")
    folder = log(peaks(10, 0.2), "2026-11-25T21:00Z", "02", thresholds=own | {"loud": Threshold(1.0, 0.25, 0.1, 0.2)})
    assert "loud                  0.5 -> " in command("tune", folder, "--target", "20/h")


def test_scores_of_another_model_do_not_count_and_are_named(log, command, loudness_model):
    log(peaks(100), "2026-11-24T20:00Z", "01", sha256="cd" * 32)
    folder = log(peaks(5), "2026-11-25T20:00Z", "02")
    said = command("tune", folder, "--target", "20/h")
    assert ".scores: was heard with another model, it does not count" in said
    assert "of 1 h heard" in said
    log(peaks(100), "2026-11-26T20:00Z", "03", sha256="cd" * 32)
    assert "5 events told" in command("tune", folder, "--target", "20/h", "--model", loudness_model)
    assert "200 events told" in command("tune", folder, "--target", "20/h")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("LOGS", "--quiet", "2026-11-25T20:00/2026-11-25T21:00"), "has no time zone; end both times in Z"),
        (("LOGS", "--quiet", "2026-11-25T21:00Z/2026-11-25T20:00Z"), "ends before it begins"),
        (("LOGS", "--quiet", "2001-11-25T20:00Z/2001-11-25T21:00Z"), "none of the score logs was written at that time"),
        (("LOGS", "--label", "siren"), "the model has no label siren; it has loud, so_far"),
        (("LOGS", "--model", "SHIPPED"), "holds no scores of this model; give the model they were heard with"),
        ((), "has nothing that was heard"),
        (("MODEL", "street", "--data", "TONES", "--fold", 1), "goes with --quiet"),
    ],
)
def test_what_logs_cannot_be_tuned_with_is_one_clear_line(
    log, loudness_model, shipped_model, street, tones, command, monkeypatch, given, said
):
    monkeypatch.chdir(street.parent)
    names = {"LOGS": log(peaks(5), "2026-11-25T20:00Z"), "SHIPPED": shipped_model, "MODEL": loudness_model, "TONES": tones}
    with pytest.raises(InputError) as error:
        command("tune", *(names.get(each, each) for each in given), "--target", "1/h")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_profile_mutes_is_not_written_into_the_model(log, command, loudness_model, tmp_path):
    own = Model(loudness_model, "cpu").description.thresholds
    muted = own | {"so_far": Threshold(2.0, 0.25, 0.1, 0.2)}  # as a profile has it
    command(
        "tune",
        loudness_model,
        log(peaks(100), "2026-11-25T20:00Z", thresholds=muted),
        "--target",
        "20/h",
        "--out",
        tmp_path / "t.onnx",
    )
    written = Model(tmp_path / "t.onnx", "cpu").description.thresholds
    assert written["so_far"] == own["so_far"]
    assert written["loud"].on > own["loud"].on
