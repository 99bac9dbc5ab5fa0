from pathlib import Path

import pytest

from detector.errors import InputError
from trainer.files import write_whole


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def half(partial):
        partial.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"file: cannot be written \(No space left on device\); is the disk full"):
        write_whole(path, half)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
    write_whole(path, lambda partial: partial.write_text("new"))
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["file/x.png", "a" * 250, "."])
def test_a_name_that_cannot_be_written_is_one_clear_line(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written|is no name for a file"):
        write_whole(Path(name), lambda partial: partial.write_text("x"))
