import csv
import json

import numpy as np
import pytest
import soundfile

RATE = 8000
TONES = {"low": 300.0, "middle": 900.0, "high": 2500.0}
CFG = """
[frontend]
sample_rate=8000
n_fft=256
hop_length=128
n_mels=16
[convs_module]
[conv2d]
out_channels=8
kernel_size=3
[batchnorm2d]
[relu]
[maxpool2d]
kernel_size=[2,4]
[moddims]
permute=[2,1,0]
collapse=[1,2]
[recur_module]
[lstm]
hidden_size=16
[dense_module]
[linear]
out_features=3
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """A data set in the official layout that a small network can learn: three tones in noise, folds 1 to 4."""
    root = tmp_path_factory.mktemp("UrbanSound8K")
    random = np.random.default_rng(1)
    rows = []
    for fold in (1, 2, 3, 4):
        folder = root / "audio" / f"fold{fold}"
        folder.mkdir(parents=True)
        for index in range(18):
            class_id = index % 3
            label, hz = list(TONES.items())[class_id]
            length = int(RATE * random.uniform(0.4, 1.5))
            tone = 0.2 * np.sin(2 * np.pi * hz * random.uniform(0.9, 1.1) * np.arange(length) / RATE)
            name = f"{fold}{index:02d}-{class_id}-0-0.wav"
            soundfile.write(folder / name, tone + 0.02 * random.standard_normal(length), RATE)
            rows.append({"slice_file_name": name, "fsID": f"{fold}{index}", "fold": fold, "classID": class_id, "class": label})
    (root / "metadata").mkdir()
    with (root / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="session")
def noises(tmp_path_factory):
    """Backgrounds: noise without a tone. By their names 5 train, 2 choose thresholds and 5 test."""
    folder = tmp_path_factory.mktemp("background")
    random = np.random.default_rng(2)
    for index in range(12):
        soundfile.write(folder / f"{index}-A.wav", 0.05 * random.standard_normal(2 * RATE), RATE)
    return folder


@pytest.fixture
def cfg_file(tmp_path):
    path = tmp_path / "tones.cfg"
    path.write_text(CFG)
    return path


TABLES = {
    "name": "tones",
    "cfg": "tones.cfg",
    "batch": {"size": 8},
    "stream": {"canvas_s": 1.0},
    "optimizer": {"type": "AdamW", "args": {"lr": 0.01}},
    "train": {"epochs": 2, "verbosity": 1, "tensorboard": False},
}


def toml(value):
    """A value as TOML has it, tables in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def recipe_file(cfg_file):
    """A quick recipe beside its cfg, as a file: `recipe_file(train={"epochs": 1})` changes single keys."""

    def write(**changes):
        tables = TABLES | {
            name: TABLES[name] | table if isinstance(TABLES.get(name), dict) else table for name, table in changes.items()
        }
        path = cfg_file.with_name("tones.toml")
        path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in tables.items()))
        return path

    return write


@pytest.fixture
def recipe(recipe_file):
    """The same, read."""
    from trainer.recipe import load_recipe

    return lambda **changes: load_recipe(recipe_file(**changes))


@pytest.fixture
def trained(tones, cfg_file):
    """Train on the tones, fold 1 tested, as the command does; what it said is the second answer."""
    from trainer.cfg import load_cfg
    from trainer.data import load_dataset, split
    from trainer.training import train

    def call(recipe, out=None, root=tones, **options):
        data, said = load_dataset(root), []
        options = {"device": "cpu", "say": said.append} | options
        return train(load_cfg(cfg_file), data, recipe, split(data, 1), out=out, **options), said

    return call


@pytest.fixture
def command():
    """Run a command in this process; what it printed."""
    from click.testing import CliRunner

    from detector.cli import cli

    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False).output
