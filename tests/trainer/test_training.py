"""What a training promises: an honest test, one network a seed, and a clear line where something cannot work."""

import ctypes
import json
import re
import resource
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from detector.errors import ConfigError, InputError, UrbandetectError
from detector.model import Model
from trainer.cfg import load_cfg
from trainer.checkpoint import load_checkpoint
from trainer.crnn import CRNN
from trainer.thresholds import DEFAULT, FALSE_EVENTS_PER_HOUR
from trainer.training import _follow, _twin

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
STEREO = ("[convs_module]", "[input]\nshape=[2, 16, 60]\n[convs_module]")


def equal(one, two):
    """Whether two networks have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_command_trains_tests_honestly_and_writes_a_model_that_answers_the_same(tones, noises, recipe_file, command, tmp_path):
    out = tmp_path / "out"
    recipe = recipe_file(train={"epochs": 12}, lr_scheduler={"type": "OneCycleLR", "interval": "step"})
    said = command(
        *("train", "--recipe", recipe, "--fold", 2, "--val-fold", 1, "--data", tones, "--background", noises),
        *("--out", out, "--device", "cpu", "--lr", 0.03),
    )
    assert re.search(r"epoch   1/12  loss \d.*  \d+\.\d s, device busy \d+%  left \d", said)
    assert "on fold 2, 18 clips" in said
    figures = json.loads((out / "figures.json").read_text())
    assert figures["training"]["folds"] == {"train": [3, 4], "validation": [1], "test": [2]}
    assert figures["training"]["recipe"]["optimizer"]["args"] == {"lr": 0.03}
    assert figures["metrics"]["test"]["accuracy"] > 0.8
    evaluate = ("evaluate", "--data", tones, "--fold", 2, "--json")
    by_onnx, by_torch = (json.loads(command(*evaluate, out / name)) for name in ("model.onnx", "model.pt"))
    assert by_onnx["confusion"] == by_torch["confusion"] == figures["metrics"]["test"]["confusion"]
    assert by_onnx["accuracy"] == pytest.approx(figures["metrics"]["test"]["accuracy"], abs=1e-4)
    assert Model(out / "model.onnx").description.labels == ("low", "middle", "high")
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "last.ckpt", "model.onnx", "model.pt", "recipe.json"]


def test_a_given_seed_gives_the_same_network_and_another_seed_another(trained, recipe):
    first, again, other = (trained(recipe(train={"epochs": 1, "seed": seed}))[0].model for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


def test_the_test_fold_has_no_part_in_training(trained, recipe, tones, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tones, other)
    for path in (other / "audio" / "fold1").iterdir():
        soundfile.write(path, np.random.default_rng(0).standard_normal(4000) * 0.3, 8000)
    (one, _), (two, _) = trained(recipe()), trained(recipe(), root=other)
    assert equal(one.model, two.model)
    assert one.validation.loss == two.validation.loss
    assert one.test.loss != two.test.loss


def test_a_network_that_needs_whole_clips_trains_and_is_not_exported(tones, cfg_file, recipe_file, command, tmp_path):
    text = cfg_file.read_text().replace("n_mels=16", "n_mels=16\nnorm=whiten")
    cfg_file.write_text(text.replace("[dense_module]", "[moddims]\npermute=[1]\n[dense_module]"))
    out, recipe = tmp_path / "out", recipe_file(train={"loss": "clip"})
    said = command("train", "--recipe", recipe, "--fold", 1, "--data", tones, "--out", out)
    assert "not exported: [frontend] norm=whiten" in said
    assert "test accuracy" in said
    assert load_checkpoint(out / "model.pt")[1]["metrics"]["test"]["clips"] == 18
    assert not (out / "model.onnx").exists()


def test_stereo_trains_on_clips_evaluates_and_is_not_exported(tones, cfg_file, recipe_file, command, tmp_path):
    cfg_file.write_text(cfg_file.read_text().replace(*STEREO))
    root = tmp_path / "both"
    shutil.copytree(tones, root)
    for path in (root / "audio").glob("fold*/*.wav"):  # what tells the classes apart is on the second channel alone
        audio, rate = soundfile.read(path)
        soundfile.write(path, np.stack([0.02 * np.random.default_rng(1).standard_normal(len(audio)), audio], axis=1), rate)
    out, recipe = tmp_path / "out", recipe_file(train={"loss": "clip", "epochs": 8}, data={"channels": "stereo"})
    said = command("train", "--recipe", recipe, "--fold", 1, "--data", root, "--out", out, "--device", "cpu")
    assert "not exported: [input] has 2 channels, and a stream is mono" in said
    figures = json.loads(command("evaluate", "--data", root, "--fold", 1, "--json", out / "model.pt"))
    assert figures["confusion"] == json.loads((out / "figures.json").read_text())["metrics"]["test"]["confusion"]
    assert figures["accuracy"] > 0.8
    assert not (out / "model.onnx").exists()


def test_thresholds_are_chosen_whatever_the_protocol_and_before_it_all_their_backgrounds_are_read(
    tones, noises, recipe_file, command, tmp_path
):
    recipe = recipe_file(train={"epochs": 1}, data={"background": [str(noises)]})
    said = command("train", "--recipe", recipe, "--fold", 1, "--data", tones, "--out", tmp_path / "out", "--protocol", "reference")
    assert "thresholds: " in said
    checkpoint = load_checkpoint(tmp_path / "out" / "model.pt")[1]
    assert checkpoint["thresholds"]["low"]["on"] != DEFAULT["on"]
    assert checkpoint["training"]["false_events_per_hour"] == FALSE_EVENTS_PER_HOUR
    assert checkpoint["metrics"]["calibration"].keys() == {"scale", "offset", "ece_before", "ece_after"}
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(noises / "0-A.wav", few)
    with pytest.raises(InputError, match="holds too few recordings"):
        command("train", "--fold", 1, "--recipe", recipe, "--data", tones, "--out", tmp_path / "x", "--background", few)
    assert not (tmp_path / "x" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("folds", "given", "said"),
    [
        ({"train": [2, 3], "val": [4], "test": [2]}, (), "is there twice"),
        ({"train": [1, 2], "val": [3], "test": [9]}, (), "fold 9 has no clips"),
        ({"train": [1, 2], "val": [3]}, ("--val-fold", 4), "names the folds here"),
        ({"train": [1, 2], "val": [3]}, ("--protocol", "reference"), "names the folds here"),
    ],
)
def test_folds_that_a_recipe_names_are_as_honest_as_those_of_the_command(tones, recipe_file, command, tmp_path, folds, given, said):
    with pytest.raises(UrbandetectError, match=said):
        command("train", "--recipe", recipe_file(data=folds), "--data", tones, "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--device", "cpu:0"), "is nothing to train on; auto, cpu, cuda, or cuda:N for one"),
        (("--device", "meta"), "is nothing to train on"),
        (("--device", "cuda:1", "--devices", 2), "is nothing to train on"),
        (("--device", "cpu", "--devices", 3), "cannot share batches of 8 rows; make batch.size a multiple"),
    ],
)
def test_a_device_that_cannot_train_is_one_clear_line(tones, recipe_file, command, tmp_path, given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        command("train", "--recipe", recipe_file(), "--fold", 1, "--data", tones, "--out", tmp_path / "out", *given)


def test_the_averaged_weights_follow_exponentially_and_sooner_at_first():
    torch.manual_seed(0)
    module = CRNN(load_cfg("models/urban.cfg"))
    average, expected = _twin(module), None
    for step in range(30):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_()
        _follow(average, module, 0.7, step)
        new = module.state_dict()["layers.linear_0.weight"].clone()
        decay = min(0.7, (1 + step) / (10 + step))
        expected = new if expected is None else decay * expected + (1 - decay) * new
    torch.testing.assert_close(average.state_dict()["layers.linear_0.weight"], expected, atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_state_is_carried_over_from_clip_to_clip(trained, recipe, noises):
    """Rows that carry their state on train another network than rows that always start fresh."""
    data = {"background": [str(noises)]}
    carried, fresh = (trained(recipe(data=data, stream={"fresh": p}))[0].model for p in (0.4, 1.0))
    assert not equal(carried, fresh)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--fold", 9), "fold 9 has no clips; folds here: 1, 2, 3, 4"),
        (("--fold", 1, "--val-fold", 9), "fold 9 has no clips"),
        (("--fold", 1, "--val-fold", 1), "cannot both choose the epoch and test it"),
        (("--data", "nowhere"), "--fold: is missing; give 1 to 10, all, or none"),
        (("--fold", "all", "--val-fold", 1), "are other ones for each of --fold all"),
    ],
)
def test_a_fold_that_cannot_be_used_is_one_clear_line(tones, recipe_file, command, given, said):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        command("train", "--recipe", recipe_file(), "--data", tones, *given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "changes", "kind", "said"),
    [
        (("out_features=3", "out_features=4"), {}, InputError, "has 4 outputs and the data set 3 labels"),
        (("n_mels=16", "n_mels=16\nnorm=whiten"), {}, ConfigError, "does not stream: [frontend] norm=whiten"),
        (("", ""), {"data": {"channels": "stereo"}}, ConfigError, "has 1 input channel and data.channels is 'stereo'"),
        (STEREO, {"train": {"loss": "clip"}}, ConfigError, "has 2 input channels and data.channels is 'avg'"),
        (
            ("", ""),
            {"train": {"loss": "clip"}, "augment": {"background": {"p": 0.5}}},
            ConfigError,
            "augment.background has no background folder",
        ),
    ],
)
def test_a_recipe_and_a_cfg_that_do_not_fit_are_one_clear_line(trained, recipe, cfg_file, cfg, changes, kind, said):
    cfg_file.write_text(cfg_file.read_text().replace(*cfg))
    with pytest.raises(kind, match=re.escape(said)) as error:
        trained(recipe(**changes))
    assert "\n" not in str(error.value)


def test_a_corrupt_clip_is_named_or_with_skip_bad_said_and_left_out_every_time(
    trained, recipe_file, command, tones, noises, tmp_path
):
    root, quiet, out = tmp_path / "bad", tmp_path / "quiet", tmp_path / "out"
    shutil.copytree(tones, root)
    shutil.copytree(noises, quiet)
    clip = root / "audio" / "fold3" / "300-0-0-0.wav"
    clip.write_text("no audio")
    bad = [quiet / "1-A.wav", quiet / "5-A.wav"]  # one trains, thresholds are chosen on the other
    for path in bad:
        path.write_text("no audio")
    train = ("train", "--recipe", recipe_file(train={"epochs": 1}), "--fold", 1, "--data", root, "--background", quiet)
    with pytest.raises(InputError, match=f"{clip}: cannot be decoded") as error:
        command(*train, "--out", out)
    assert error.value.exit_code == 64
    assert "\n" not in str(error.value)
    for _ in range(2):
        said = command(*train, "--out", out, "--fresh", "--skip-bad")
        for path in (clip, *bad):
            assert said.count(f"skipped {path}: cannot be decoded") == 1
        assert "(35 clips, " in said
        assert "test accuracy" in said
    assert (out / "model.onnx").exists()


def test_where_no_epoch_is_chosen_the_last_one_is_taken(trained, recipe):
    how = {"epochs": 5, "early_stop": 1}
    result, said = trained(recipe(train=how | {"monitor": "last"}, optimizer={"type": "SGD", "args": {"lr": 0.3}}))
    assert result.best_epoch == 5
    assert len([line for line in said if line.startswith("epoch")]) == 5


def test_a_training_may_begin_with_the_weights_of_another_that_has_not_seen_what_it_tests(
    tones, recipe_file, cfg_file, command, tmp_path
):
    train = ("train", "--recipe", recipe_file(train={"epochs": 1}), "--data", tones)
    command(*train, "--fold", 1, "--out", tmp_path / "first")
    first = tmp_path / "first" / "model.pt"
    command(*train, "--fold", 1, "--out", tmp_path / "second", "--from", first, "--lr", 1e-9)
    old, new = (load_checkpoint(tmp_path / name / "model.pt") for name in ("first", "second"))
    for name, weight in new[0].named_parameters():
        torch.testing.assert_close(weight, old[0].get_parameter(name), atol=1e-6, rtol=1e-4)
    assert new[1]["training"]["began_with"] == sha256(first.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="was trained or chosen on fold 2, which is to be tested"):
        command(*train, "--fold", 2, "--out", tmp_path / "third", "--from", first)
    cfg_file.write_text(cfg_file.read_text().replace("hidden_size=16", "hidden_size=8"))
    with pytest.raises(ConfigError, match=f"--from {first}: is not the network of"):
        command(*train, "--fold", 1, "--out", tmp_path / "fourth", "--from", first)


def test_a_training_stops_after_so_many_epochs_without_a_better_one_and_keeps_the_best(trained, recipe, tmp_path):
    how = recipe(
        train={"epochs": 30, "early_stop": 3, "monitor": "max f1", "metrics": ["f1"]},
        lr_scheduler={"type": "ReduceLROnPlateau", "args": {"patience": 0, "factor": 0.1}},
    )
    result, said = trained(how, tmp_path)
    f1 = [float(re.search(r"f1 (\d+\.\d)%", line)[1]) for line in said if line.startswith("epoch")]
    assert said[-1] == "no better f1 on the validation fold for 3 epochs: stopped"
    assert result.best_epoch == f1.index(max(f1)) + 1
    assert len(f1) == result.best_epoch + 3 < 30
    assert 100 * result.validation.f1 == pytest.approx(max(f1), abs=0.06)
    schedule = torch.load(tmp_path / "last.ckpt", weights_only=True)["parts"]["schedule"]
    assert schedule["mode"] == "max"
    assert schedule["best"] == pytest.approx(result.validation.f1)
    assert schedule["_last_lr"][0] <= 0.01 * 0.1**3 * 1.001


def test_shuffle_drop_last_and_balance_do_what_they_say(recipe):
    from lightning_fabric import Fabric

    from trainer.loader import batches

    fabric, clips = Fabric(accelerator="cpu", devices=1), list(range(100, 121))
    names = ["long"] * 20 + ["short"]

    def epoch(number, **batch):
        return [part.tolist() for part in batches(clips, names, 8, recipe(batch=batch), fabric, number)]

    whole = [clips[:8], clips[8:16], clips[16:]]
    assert epoch(1, shuffle=False, drop_last=False) == whole
    assert epoch(1, shuffle=False, drop_last=True) == whole[:2]
    shuffled = [epoch(number, shuffle=True, drop_last=False) for number in (1, 1, 2)]
    assert [len(part) for part in shuffled[0]] == [8, 8, 5]
    assert sorted(clip for part in shuffled[0] for clip in part) == clips
    assert shuffled[0] == shuffled[1]
    assert shuffled[0] != shuffled[2]
    assert epoch(1, drop_last=True, size=64) == epoch(1, drop_last=True)
    drawn = [clip for number in range(100) for part in epoch(number, balance=1.0) for clip in part]
    assert 0.4 < drawn.count(120) / len(drawn) < 0.6
    assert set(drawn) == set(clips)


def test_tensorboard_has_every_figure_and_no_step_twice_after_a_resume(trained, recipe, tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith("epoch   3/"):
            raise Stop

    how = recipe(
        train={"epochs": 3, "tensorboard": True, "save_every": 2},
        lr_scheduler={"type": "StepLR", "args": {"step_size": 1, "gamma": 0.5}},
    )
    with pytest.raises(Stop):
        trained(how, tmp_path, say=stop)  # epoch 3 is in the log and not in the checkpoint
    trained(how, tmp_path)
    trained(how, tmp_path)  # there is nothing left to train
    log = EventAccumulator(str(tmp_path / "tensorboard"), tensor_size_guidance={"images": 0}).Reload()
    tags = log.Tags()["tensors"]
    read = {tag: {event.step: make_ndarray(event.tensor_proto) for event in log.Tensors(tag)} for tag in tags}
    assert all(len(read[tag]) == len(log.Tensors(tag)) for tag in tags)
    labels = [f"{figure}/{label}" for figure in ("recall", "precision", "f1") for label in ("low", "middle", "high")]
    for tag in ("loss/train", "loss/validation", "validation/accuracy", "validation/f1", "validation/confusion", *labels):
        assert list(read[tag]) == [1, 2, 3], tag
    assert list(read["train/learning_rate"].values()) == pytest.approx([0.01, 0.005, 0.0025])
    for tag in ("examples", "validation/confusion", "best/test_confusion"):
        assert all(image[2].startswith(b"\x89PNG") for image in read[tag].values()), tag
    assert b"accuracy" in read["best/test/text_summary"][4][0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, where a process's memory can be limited")
@pytest.mark.parametrize("size", [4096, 1 << 17], ids=["the-step", "the-loader"])
def test_a_batch_that_does_not_fit_into_memory_is_one_line_with_a_size_that_does(trained, recipe, size):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 28), hard))
    malloc = ctypes.CDLL(None).mallopt
    malloc(M_ARENA_MAX, 1)  # addresses are limited, and threads reserve 64 MB of them each
    few = {"soundscapes": 0.1}  # quick ones: soundscapes take long to make
    try:
        with pytest.raises(ConfigError, match=rf"batch\.size = {size}: does not fit into the memory of cpu; \d+ does") as error:
            trained(recipe(batch={"size": size}, stream=few))
        said, error = str(error.value), None
        result, _ = trained(recipe(batch={"size": int(said.split()[-2])}, stream=few, train={"epochs": 1}))
    finally:
        malloc(M_ARENA_MAX, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert result.best_epoch == 1
