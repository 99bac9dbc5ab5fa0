"""Cross-validation: every fold tested once by a network that never saw it, whatever happens in between."""

import csv
import json

import pytest

from detector.errors import InputError
from detector.model import Model
from trainer.cfg import load_cfg
from trainer.data import load_dataset
from trainer.folds import run_folds


@pytest.fixture
def all_folds(tones, recipe_file, command):
    """Run `urbandetect train --fold all`, one epoch a fold; what it printed."""
    recipe = recipe_file(train={"epochs": 1})
    return lambda out, *more: command(
        "train", "--recipe", recipe, "--fold", "all", "--data", tones, "--out", out, "--device", "cpu", *more
    )


def figures(out):
    return {fold: json.loads((out / f"fold{fold}" / "figures.json").read_text()) for fold in (1, 2, 3, 4)}


def test_every_fold_is_tested_once_by_a_network_without_it_and_the_table_says_so(all_folds, tmp_path):
    out = tmp_path / "out"
    said = all_folds(out)
    found = figures(out)
    for fold, each in found.items():
        folds = each["training"]["folds"]
        assert folds["test"] == [fold]
        assert len(folds["validation"]) == 1
        assert sorted(folds["train"] + folds["validation"] + folds["test"]) == [1, 2, 3, 4]
        assert each["training"]["protocol"] == "honest"
    with (out / "folds.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["fold", "clips", "validation fold", "best epoch", "accuracy"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "mean", "deviation"]
    accuracies = [each["metrics"]["test"]["accuracy"] for each in found.values()]
    assert [row[4] for row in rows[:4]] == [f"{accuracy:.1%}" for accuracy in accuracies]
    assert rows[4][1] == "72"
    assert rows[4][4] == f"{sum(accuracies) / 4:.1%}"
    table = (out / "folds.md").read_text()
    assert table.strip() in said
    assert "4 of 4 folds" in table
    assert [cell.strip() for cell in table.splitlines()[-2].split("|")[1:-1]] == rows[4]
    assert (out / "folds.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob("*.partial"))


def test_folds_that_are_done_are_not_trained_again_and_one_that_was_interrupted_goes_on(tones, recipe, cfg_file, tmp_path):
    class Stop(Exception):
        pass

    how, data, epochs = recipe(), load_dataset(tones), []

    def stop_in_the_second_fold(line):
        epochs.append(line.startswith("epoch   2/2"))
        if sum(epochs) == 2:
            raise Stop

    def run(say, fresh=False):
        run_folds(load_cfg(cfg_file), data, how, tmp_path / "out", protocol="honest", fresh=fresh, say=say, device="cpu")

    with pytest.raises(Stop):
        run(stop_in_the_second_fold)
    assert "1 of 4 folds" in (tmp_path / "out" / "folds.md").read_text()
    said = []
    run(said.append)
    text = "\n".join(said)
    assert text.count("is done") == 1
    assert "fold 1 is done" in text
    assert text.count("going on after epoch 1") == 1
    assert text.count("epoch   1/2") == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("fold*/*")}
    said.clear()
    run(said.append)
    assert [line.partition(":")[0] for line in said[:-1]] == [f"fold {fold} is done" for fold in (1, 2, 3, 4)]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("fold*/*")}
    cfg_file.write_text(cfg_file.read_text().replace("hidden_size=16", "hidden_size=12"))
    with pytest.raises(InputError, match="is of another training: cfg was"):
        run(said.append)
    said.clear()
    run(said.append, fresh=True)
    assert "\n".join(said).count("epoch   1/2") == 4


def test_the_references_protocol_is_labelled_wherever_its_figures_are(tones, recipe_file, command, tmp_path):
    recipe = recipe_file(train={"epochs": 1, "save_dir": str(tmp_path / "runs")})
    said = command("train", "--recipe", recipe, "--fold", "all", "--data", tones, "--protocol", "reference", "--device", "cpu")
    out = tmp_path / "runs" / "tones-all-reference-protocol"
    assert said.count("reference: the epoch was chosen on the fold that is reported: this is no honest test") == 4
    for fold, each in figures(out).items():
        assert each["training"]["folds"]["validation"] == each["training"]["folds"]["test"] == [fold]
        assert each["training"]["protocol"].startswith("reference: ")
    assert Model(out / "fold1" / "model.onnx").description.properties["training"]["protocol"].startswith("reference: ")
    title = (out / "folds.md").read_text().splitlines()[0]
    assert title.endswith("chosen on the tested fold itself, the reference's protocol: no honest test")
    assert title in said
