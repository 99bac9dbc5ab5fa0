import json
import tomllib

import numpy as np
import onnx
import pytest
import soundfile

from detector.config import ThresholdSettings, load_settings
from detector.errors import ConfigError, InputError
from detector.model import Model
from trainer.cfg import load_cfg
from trainer.cli_tune import rate_per_hour
from trainer.crnn import CRNN
from trainer.data import background_files
from trainer.exporter import export
from trainer.hearing import scores_of
from trainer.tuning import quiet_files, scores_of_file


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
    said = command("tune", loudness_model, "--target", "12/day", "--quiet", street, "--out", out)
    (old_graph, old), (new_graph, new) = of_model(loudness_model), of_model(out)
    assert new_graph == old_graph
    assert new["training"] == {"false_events_per_hour": 0.5}
    thresholds = new.pop("thresholds")
    assert {**new, "training": {}} == {key: value for key, value in old.items() if key != "thresholds"}
    assert {**thresholds["loud"], "on": 0, "off": 0} == {"on": 0, "off": 0, "min_on_s": 0.1, "min_off_s": 0.2}
    assert 0.4 < thresholds["loud"]["on"] <= 1
    assert thresholds["loud"]["off"] == pytest.approx(thresholds["loud"]["on"] / 2)
    Model(out, "cpu")
    assert f"wrote {out}" in said
    assert "0 counted in 0.03 h of quiet sound" in said


def test_a_rate_far_from_what_the_quiet_sound_can_tell_is_a_warning_with_the_hours_it_takes(loudness_model, street, command):
    said = command("tune", loudness_model, "--target", "1/week", "--quiet", street)
    assert "warning: 1/week is told from 0.033 h of quiet sound" in said
    assert "record 11 h or more" in said
    assert "warning" not in command("tune", loudness_model, "--target", "60/h", "--quiet", street)


def test_without_out_nothing_is_written_and_detector_toml_takes_the_lines(loudness_model, street, command, tmp_path):
    before = loudness_model.read_bytes()
    said = command("tune", loudness_model, "--target", "2/h", "--quiet", street / "one.wav")
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
    tuned = ("tune", model, "--target", "5/h", "--quiet", noises, "--data", tones, "--fold")
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
        (("--quiet", "nowhere"), "nowhere: no such file or folder"),
        (("--quiet", "empty"), "empty: holds no audio file"),
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
