"""A training that stops, for whatever reason, goes on as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detector.errors import InputError
from trainer.checkpoint import NAME
from trainer.run import clear

PROGRAM = Path(sys.executable).with_name("urbandetect")
WRITTEN = ["figures.json", NAME, "model.onnx", "model.pt", "recipe.json"]

STREAM = {
    "train": {"epochs": 3},
    "augment": {"noise": {"p": 0.5}, "mixup": {"p": 0.3}, "background": {"p": 0.5}, "stretch": {"p": 0.5}, "reverb": {"p": 0.2}},
    "lr_scheduler": {"type": "OneCycleLR", "interval": "step"},
}
CLIP = {
    "train": {"epochs": 3, "loss": "clip"},
    "augment": {"noise": {"p": 0.5}, "crop": {"p": 0.5}, "background": {"p": 0.5}},
    "lr_scheduler": {"type": "CosineAnnealingLR"},
}
DIVERGES = {  # what the second epoch begins with is far too fast
    "train": {"epochs": 3, "clip_grad": 0.0},
    "lr_scheduler": {"type": "MultiStepLR", "args": {"milestones": [1], "gamma": 1e30}},
}


class Stop(Exception):
    """Somebody pulled the plug."""


def stop_at(line_start):
    def say(line):
        if line.startswith(line_start):
            raise Stop

    return say


def state(out):
    """All of a checkpoint but the time that the training took."""
    checkpoint = torch.load(out / NAME, weights_only=True)
    del checkpoint["progress"]["spent_s"]
    return checkpoint


def same(one, two):
    """Whether two checkpoints are the same to the last bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def start(*arguments):
    """The installed program, its lines as it says them."""
    command = [str(PROGRAM), "train", "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def losses(said):
    """The epochs a training told of, without the time they took."""
    return [line.partition("best epoch")[0] for line in said if line.startswith("epoch")]


@pytest.mark.parametrize("tables", [STREAM, CLIP], ids=["stream", "clip"])
def test_a_training_that_was_interrupted_resumes_to_the_identical_next_step(trained, recipe, noises, tmp_path, tables):
    how = recipe(**tables, data={"background": [str(noises)]})
    _, whole = trained(how, tmp_path / "whole")
    with pytest.raises(Stop):
        trained(how, tmp_path / "parts", say=stop_at("epoch   2/3"))
    assert state(tmp_path / "parts")["progress"]["epoch"] == 1
    _, parts = trained(how, tmp_path / "parts")
    assert "going on after epoch 1" in parts[0]
    assert losses(parts) == losses(whole)[1:]
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_goes_on_when_the_same_command_is_given_again(recipe_file, command, tones, noises, tmp_path):
    recipe = recipe_file(**STREAM)
    given = ("--recipe", recipe, "--fold", 1, "--data", tones, "--background", noises, "--out")
    killed = start(*given, tmp_path / "killed")
    assert killed.stdout
    for line in killed.stdout:
        if line.startswith("epoch   2/3"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    again = start(*given, tmp_path / "killed")
    said, complaints = again.communicate(timeout=100)
    assert again.returncode == 0, complaints
    assert "going on after epoch" in said
    command("train", "--device", "cpu", *given, tmp_path / "whole")  # in one thread too: the order of a sum is another in two
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))
    one, other = (json.loads((tmp_path / name / "figures.json").read_text())["metrics"] for name in ("whole", "killed"))
    assert one == other


def test_two_processes_train_one_network_say_every_line_once_and_go_on_together(recipe_file, tones, tmp_path):
    given = ("--recipe", recipe_file(train={"epochs": 3}), "--fold", 1, "--data", tones, "--devices", 2, "--out")
    whole, parts, lines = start(*given, tmp_path / "whole"), tmp_path / "parts", []
    assert whole.stdout
    parts.mkdir()
    for line in whole.stdout:
        lines.append(line)
        if line.startswith("epoch   2/3"):
            shutil.copy(tmp_path / "whole" / NAME, parts)
    _, complaints = whole.communicate(timeout=100)
    assert (whole.returncode, complaints) == (0, "")
    assert "2 x cpu" in "".join(lines)
    assert len(losses(lines)) == 3
    assert len(set(lines)) == len(lines)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == WRITTEN
    resumed = start(*given, parts)
    said, complaints = resumed.communicate(timeout=100)
    assert (resumed.returncode, complaints) == (0, "")
    assert "going on after epoch" in said
    assert same(state(tmp_path / "whole"), state(parts))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"args": {"lr": 0.02}}}, "recipe.optimizer.args.lr was '0.01', now '0.02'"),
        ({"train": {"epochs": 5}}, "recipe.train.epochs was '2', now '5'"),
        ({"batch": {"size": 4}}, "recipe.batch.size was '8', now '4'"),
    ],
)
def test_the_checkpoint_of_another_recipe_is_refused_naming_the_key_and_fresh_begins_anew(trained, recipe, tmp_path, change, said):
    trained(recipe(), tmp_path)
    other = recipe(**change)
    with pytest.raises(InputError, match=said) as error:
        trained(other, tmp_path)
    assert "\n" not in str(error.value)
    assert "--fresh" in str(error.value)
    clear(tmp_path)
    _, lines = trained(other, tmp_path)
    assert losses(lines)[0].startswith("epoch   1/")


def test_the_checkpoint_of_another_cfg_is_refused_naming_what_differs(trained, recipe, cfg_file, tmp_path):
    trained(recipe(), tmp_path)
    cfg_file.write_text(cfg_file.read_text().replace("hidden_size=16", "hidden_size=17"))
    with pytest.raises(InputError, match=r"cfg was .*hidden_size=16.* now .*hidden_size=17"):
        trained(recipe(), tmp_path)


def test_what_does_not_change_the_network_may_change_between_two_parts(trained, recipe, tmp_path):
    with pytest.raises(Stop):
        trained(recipe(), tmp_path, say=stop_at("epoch   2/2"))
    _, said = trained(recipe(train={"save_every": 2, "metrics": ["recall"]}, data={"workers": 1}), tmp_path)
    assert "going on after epoch 1" in said[0]


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"no checkpoint"])
def test_a_damaged_checkpoint_is_one_clear_line_and_fresh_begins_anew(trained, recipe, tmp_path, damage):
    trained(recipe(train={"epochs": 1}), tmp_path)
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path}: is not a checkpoint of urbandetect; remove it, or begin anew with --fresh"):
        trained(recipe(train={"epochs": 1}), tmp_path)
    clear(tmp_path)
    trained(recipe(train={"epochs": 1}), tmp_path)
    assert state(tmp_path)["progress"]["epoch"] == 1


def test_a_full_disk_while_the_checkpoint_is_written_leaves_the_old_one(trained, recipe, tmp_path):
    """The kernel refuses what goes past 20 kB of a file, as a disk does that has no more room."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def say(line):
        if line.startswith("epoch   2/2"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(InputError, match=rf"{NAME}: cannot be written .* is the disk full") as error:
            trained(recipe(), out, say=say)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in out.iterdir()] == [NAME]
    assert state(out)["progress"]["epoch"] == 1
    _, said = trained(recipe(), out)
    assert "going on after epoch 1" in said[0]


@pytest.mark.parametrize(
    ("batch", "where"), [(8, r"batch \d of epoch 2"), (64, "the validation of epoch 2")], ids=["in-a-batch", "in-the-validation"]
)
def test_a_loss_that_is_no_number_stops_with_one_line_and_keeps_the_last_good_checkpoint(trained, recipe, tmp_path, batch, where):
    how = recipe(**DIVERGES, batch={"size": batch})
    with pytest.raises(InputError, match=f"training: the loss is (nan|inf) in {where}, ") as error:
        trained(how, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert f"the weights of epoch 1 are kept in {tmp_path / 'out'}; lower the learning rate" in str(error.value)
    kept = state(tmp_path / "out")
    assert kept["progress"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["parts"]["model"].values())
    with pytest.raises(InputError, match="the loss is"):  # it loads, and goes on to the same end
        trained(how, tmp_path / "out")


def test_a_loss_that_is_no_number_names_the_weights(trained, recipe):
    with pytest.raises(InputError, match=r"the loss is nan in batch \d of epoch 1, first in the weights \w+\.weight; lower the"):
        trained(recipe(train={"clip_grad": 0.0}, optimizer={"args": {"lr": 1e30}}))


def test_a_fresh_training_that_was_interrupted_is_the_one_that_goes_on(recipe_file, command, tones, tmp_path, monkeypatch):
    out, given = tmp_path / "out", ("--fold", 1, "--data", tones, "--device", "cpu", "--out", tmp_path / "out")
    command("train", "--recipe", recipe_file(), *given)
    assert (out / "model.pt").exists()
    recipe = recipe_file(train={"epochs": 3})
    monkeypatch.setattr("click.echo", stop_at("epoch   2/3"))
    with pytest.raises(Stop):
        command("train", "--recipe", recipe, *given, "--fresh")
    monkeypatch.undo()
    assert not {path.name for path in out.iterdir()} & {"model.pt", "model.onnx", "figures.json"}
    said = command("train", "--recipe", recipe, *given)
    assert "going on after epoch 1" in said
