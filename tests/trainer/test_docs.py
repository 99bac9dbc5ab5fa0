"""What the documentation says in code is run."""

import re
import shutil
from pathlib import Path

import pytest

from detector.model import Model
from trainer.reference import from_reference

TRAINING = Path("docs/TRAINING.md").read_text(encoding="utf-8")

RECIPE = """
[batch]
size = 8
[stream]
canvas_s = 1.0
[train]
epochs = 1
tensorboard = false
"""


def test_the_example_of_the_documentation_runs(tones, cfg_file, tmp_path, monkeypatch):
    [example] = re.findall(r"```python\n(.*?)```", TRAINING, re.DOTALL)
    (tmp_path / "models").mkdir()
    shutil.copy(cfg_file, tmp_path / "models" / "urban.cfg")
    (tmp_path / "models" / "urban.toml").write_text(RECIPE)
    (tmp_path / "UrbanSound8K").symlink_to(tones)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "docs/TRAINING.md", "exec"), names)
    assert names["figures"].confusion.tolist() == names["trained"].test.confusion.tolist()
    assert Model(tmp_path / "urban.onnx", "cpu").description.labels == ("low", "middle", "high")


def test_the_table_of_old_keys_has_every_key_of_the_reference():
    from detector.errors import ConfigError

    with pytest.raises(ConfigError) as unknown:
        from_reference({"zzz": 1}, "config.json")
    known = unknown.value.fix.removeprefix("known: ").split(", ")
    assert len(known) > 20
    assert [key for key in known if f"`{key}`" not in TRAINING] == []
