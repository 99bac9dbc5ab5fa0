"""The reference project's config.json, as its readme explains it, is a recipe here."""

import copy
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.cli import cli
from detector.errors import ConfigError
from detector.model import shipped
from trainer.draw import Augmentation, Crop, Noise, Stretch
from trainer.recipe import Batch, Data, Named, Recipe, Scheduler, Train, load_recipe

CONFIG = {
    "name": "Urban Testing",
    "data": {
        "type": "CSVDataManager",
        "path": "/data/UrbanSound8K",
        "format": "audio",
        "loader": {"batch_size": 24, "num_workers": 4, "shuffle": True, "drop_last": True},
        "splits": {"train": [1, 2, 3, 4, 5, 6, 7, 8, 9], "val": [10]},
    },
    "transforms": {"type": "AudioTransforms", "args": {"channels": "avg", "noise": [0.5, 0.005], "crop": [0.4, 0.25]}},
    "optimizer": {"type": "Adam", "args": {"lr": 0.0005, "weight_decay": 0.02, "amsgrad": True}},
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 10, "gamma": 0.5}},
    "model": {"type": "AudioCRNN"},
    "train": {
        "loss": "nll_loss",
        "epochs": 100,
        "save_dir": "saved_testing/",
        "save_p": 1,
        "verbosity": 2,
        "monitor": "min val_loss",
        "early_stop": 8,
        "tbX": True,
    },
    "metrics": "classification_metrics",
}
CHECKED = {"data.type", "data.format", "transforms.type", "model.type", "train.loss", "metrics"}
"""Keys with one possible value: they are checked and change nothing."""

OTHERS = {
    "name": ["Other", "urban_2"],
    "data.path": ["/elsewhere", "."],
    "data.loader.batch_size": [2, 32],
    "data.loader.num_workers": [0, 1],
    "data.loader.shuffle": [False],
    "data.loader.drop_last": [False],
    "data.splits.train": [[1], [9, 8]],
    "data.splits.val": [[]],
    "transforms.args.channels": ["mono", "stereo"],
    "transforms.args.noise": [[0.4, 0.005], [0.5, 0.1], False],
    "transforms.args.crop": [[0.1, 0.25], [0.4, 0.1], False],
    "optimizer.type": ["AdamW"],
    "optimizer.args.lr": [0.1, 1e-5],
    "optimizer.args.weight_decay": [0, 0.5],
    "optimizer.args.amsgrad": [False],
    "lr_scheduler.args.step_size": [1, 20],
    "lr_scheduler.args.gamma": [0.1, 1],
    "train.epochs": [1, 50],
    "train.save_dir": ["elsewhere"],
    "train.save_p": [2, 10],
    "train.verbosity": [0, 1],
    "train.monitor": ["max val_accuracy", "max avg_precision", "max val_avg_recall", "max val_loss"],
    "train.early_stop": [0, 20],
    "train.tbX": [False],
}


def leaves(table, key=""):
    for name, value in table.items():
        yield from leaves(value, f"{key}{name}.") if isinstance(value, dict) else [key + name]


def changed(key, *value):
    """The config with another value of a key; without one, with the key left out."""
    config = copy.deepcopy(CONFIG)
    *tables, name = key.split(".")
    table = config
    for each in tables:
        table = table.setdefault(each, {})
    table.pop(name, None)
    table.update({name: value[0]} if value else {})
    return config


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "config.json"

    def load(config):
        path.write_text(json.dumps(config))
        return load_recipe(path)

    return load


def test_the_references_config_is_exactly_these_settings(recipe_of):
    assert recipe_of(CONFIG) == Recipe(
        name="urban-testing",
        data=Data("/data/UrbanSound8K", min_clip_s=1.0, workers=4, train=(1, 2, 3, 4, 5, 6, 7, 8, 9), val=(10,)),
        batch=Batch(24, shuffle=True, drop_last=True),
        augment=Augmentation(noise=Noise(0.5, std=0.005), crop=Crop(0.4, 0.25), stretch=Stretch(0.4, (0.6, 1.4))),
        optimizer=Named("Adam", {"lr": 0.0005, "weight_decay": 0.02, "amsgrad": True}),
        lr_scheduler=Scheduler("StepLR", {"step_size": 10, "gamma": 0.5}, "epoch"),
        train=Train(
            loss="clip",
            epochs=100,
            clip_grad=0.0,
            ema=0.0,
            monitor="min loss",
            early_stop=8,
            metrics=("accuracy", "precision", "recall"),
            save_dir="saved_testing/",
            save_every=1,
            verbosity=2,
            tensorboard=True,
        ),
    )


def test_the_references_own_settings_differ_from_reference_toml_only_where_the_config_says_so(recipe_of):
    theirs, ours = recipe_of(CONFIG), load_recipe(shipped("reference.toml"))
    assert replace(ours.data, path="", workers=0) == replace(theirs.data, path="", workers=0, train=(), val=())
    assert ours.batch == theirs.batch
    assert ours.lr_scheduler == theirs.lr_scheduler
    assert ours.augment.stretch == theirs.augment.stretch
    assert replace(ours.train, save_dir="") == replace(theirs.train, save_dir="")


def test_every_key_of_the_config_is_either_checked_or_has_another_value_here():
    assert set(leaves(CONFIG)) == CHECKED | set(OTHERS) | {"lr_scheduler.type"}


@settings(deadline=None)
@given(st.sampled_from([(key, value) for key, values in OTHERS.items() for value in values]))
def test_no_key_is_silently_ignored(recipe_of, change):
    assert recipe_of(changed(*change)) != recipe_of(CONFIG)


@pytest.mark.parametrize("key", sorted(CHECKED))
def test_what_can_be_done_in_one_way_alone_refuses_any_other(recipe_of, key):
    with pytest.raises(ConfigError, match=rf"config\.json: {key} = 'Other' cannot be done here; one of ") as error:
        recipe_of(changed(key, "Other"))
    assert "\n" not in str(error.value)
    recipe_of(changed(key))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed("train.epoch", 3), "unknown key train.epoch; did you mean train.epochs?"),
        (changed("data.loader.pin_memory", True), "unknown key data.loader.pin_memory"),
        (changed("transforms.args.pitch", [0.5, 2]), "unknown key transforms.args.pitch"),
        (changed("seed", 3), "unknown key seed"),
        (changed("data", 3), "data must be a table, not 3"),
        (changed("transforms.args.noise", 0.5), "transforms.args.noise = 0.5; write [probability, parameter]"),
        (changed("transforms.args.noise", [0.5]), "write [probability, parameter]"),
        (changed("transforms.args.crop", [1.5, 0.25]), "augment.crop.p = 1.5"),
        (changed("transforms.args.crop", ["often", 0.25]), "augment.crop.p must be a number"),
        (changed("train.monitor", "min val_f1"), "train.monitor = 'min val_f1'"),
        (changed("train.monitor", "off"), "train.monitor = 'off'"),
        (changed("train.monitor", 3), "train.monitor = 3"),
        (changed("data.loader.batch_size", "24"), "batch.size must be a whole number, not '24'"),
        (changed("data.splits.val", 10), "data.val must be a list"),
        (changed("optimizer.type", "Adma"), "did you mean Adam"),
        (changed("optimizer.args.momentum", 0.9), "unknown key optimizer.args.momentum"),
        (changed("optimizer.args.lr", float("nan")), "optimizer.args: Invalid learning rate: nan"),
        (changed("lr_scheduler.type", "CosineAnnealingLR"), "unknown key lr_scheduler.args.step_size"),
        (changed("optimizer", None), "optimizer must be a table"),
        ([], "the whole must be a table, not []"),
        (3, "the whole must be a table, not 3"),
    ],
)
def test_what_the_config_cannot_mean_is_one_line_that_names_file_and_key(recipe_of, config, said):
    with pytest.raises(ConfigError) as error:
        recipe_of(config)
    assert "config.json: " in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [*OTHERS, "transforms", "lr_scheduler", "train"])
def test_a_key_that_is_left_out_has_a_default(recipe_of, key):
    if key == "optimizer.type":
        with pytest.raises(ConfigError, match=r"\[optimizer\] needs type"):
            recipe_of(changed(key))
    elif key == "lr_scheduler.args.step_size":
        with pytest.raises(ConfigError, match="StepLR needs step_size"):
            recipe_of(changed(key))
    else:
        recipe_of(changed(key))


@pytest.mark.parametrize("key", ["noise", "crop"])
def test_noise_and_crop_by_nothing_or_left_out_are_off(recipe_of, key):
    for change in ((), ([0.5, 0],), (False,), (None,)):
        assert getattr(recipe_of(changed(f"transforms.args.{key}", *change)).augment, key).p == 0


@pytest.mark.parametrize("text", ["{", "", "{'a': 1}", "[" * 100_000])
def test_a_file_that_is_not_json_is_one_clear_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json: is not JSON") as error:
        load_recipe(tmp_path / "config.json")
    assert "\n" not in str(error.value)


def test_the_command_takes_the_config_and_asks_for_what_it_does_not_say(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed("data.path", str(tmp_path))))
    without = CliRunner().invoke(cli, ["train", "--recipe", str(path)])
    assert "names no cfg; give the architecture with --cfg" in str(without.exception)
    taken = CliRunner().invoke(cli, ["train", "--recipe", str(path), "--cfg", str(shipped("reference.cfg"))])
    assert "UrbanSound8K.csv: cannot be read" in str(taken.exception)
