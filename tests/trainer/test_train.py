import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import InputError
from detector.model import Model
from trainer.cfg import load_cfg
from trainer.data import load_dataset
from trainer.run import evaluate_file, load_checkpoint
from trainer.train import Recipe, train

SHORT = replace(Recipe(), epochs=1, batch_size=8, canvas_s=1.0)


def quick(cfg_file, data, **options):
    return train(load_cfg(cfg_file), load_dataset(data), SHORT, **({"test_fold": 1, "say": lambda _: None} | options))


def test_the_command_trains_tests_honestly_and_writes_a_model_that_answers_the_same(tones, noises, cfg_file, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "train",
        "--fold",
        "2",
        "--data",
        tones,
        "--background",
        noises,
        "--cfg",
        cfg_file,
        "--out",
        out,
        "--epochs",
        "90",
        "--lr",
        "0.01",
    ]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "epoch   1/90" in result.output
    assert "left" in result.output
    assert "on fold 2, 18 clips" in result.output
    figures = json.loads((out / "figures.json").read_text())
    assert figures["training"]["folds"] == {"train": [3, 4], "validation": 1, "test": 2}
    assert figures["metrics"]["test"]["accuracy"] > 0.8
    by_onnx, seen = evaluate_file(out / "model.onnx", tones, 2)
    by_torch, _ = evaluate_file(out / "model.pt", tones, 2)
    assert not seen
    assert by_onnx.confusion.tolist() == by_torch.confusion.tolist()
    assert by_onnx.accuracy == pytest.approx(figures["metrics"]["test"]["accuracy"], abs=1e-4)
    assert evaluate_file(out / "model.onnx", tones, 3)[1]
    assert Model(out / "model.onnx").description.labels == ("low", "middle", "high")
    assert not list(out.glob("*.partial"))


def test_a_given_seed_gives_the_same_network(tones, cfg_file):
    first, again = (quick(cfg_file, tones).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_test_fold_has_no_part_in_training(tones, cfg_file, tmp_path):
    import shutil

    import soundfile

    other = tmp_path / "other"
    shutil.copytree(tones, other)
    for path in (other / "audio" / "fold1").iterdir():
        soundfile.write(path, np.random.default_rng(0).standard_normal(4000) * 0.3, 8000)
    one, two = quick(cfg_file, tones), quick(cfg_file, other)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True))
    assert one.validation.loss == two.validation.loss


def test_a_network_that_needs_whole_clips_trains_and_is_not_exported(tones, cfg_file, tmp_path):
    text = cfg_file.read_text().replace("n_mels=16", "n_mels=16\nnorm=whiten")
    cfg_file.write_text(text.replace("[dense_module]", "[moddims]\npermute=[1]\n[dense_module]"))
    out = tmp_path / "out"
    arguments = ["train", "--fold", "1", "--data", tones, "--cfg", cfg_file, "--out", out, "--epochs", "1"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "not exported: [frontend] norm=whiten" in result.output
    assert "test accuracy" in result.output
    assert load_checkpoint(out / "model.pt")[1]["metrics"]["test"]["clips"] == 18
    assert not (out / "model.onnx").exists()


def test_state_is_carried_over_from_clip_to_clip(tones, noises, cfg_file):
    """Rows that carry their state on train another network than rows that always start fresh."""
    carried = quick(cfg_file, tones, background_folders=(noises,)).model
    recipe = replace(SHORT, fresh=1.0)
    fresh = train(
        load_cfg(cfg_file), load_dataset(tones), recipe, test_fold=1, background_folders=(noises,), say=lambda _: None
    ).model
    assert any(not torch.equal(a, b) for a, b in zip(carried.state_dict().values(), fresh.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test_fold": 9}, "fold 9 has no clips; folds here: 1, 2, 3, 4"),
        ({"validation_fold": 9}, "fold 9 has no clips"),
        ({"validation_fold": 1}, "cannot both choose the epoch and test it"),
    ],
)
def test_a_fold_that_cannot_be_used_is_one_clear_line(tones, cfg_file, options, said):
    with pytest.raises(InputError, match=said):
        quick(cfg_file, tones, **options)


def test_a_network_with_another_number_of_outputs_is_refused(tones, cfg_file):
    cfg_file.write_text(cfg_file.read_text().replace("out_features=3", "out_features=4"))
    with pytest.raises(InputError, match="has 4 outputs and the data set 3 labels"):
        quick(cfg_file, tones)
