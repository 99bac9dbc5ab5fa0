import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import ConfigError, InputError
from trainer.page import html
from trainer.report import facts, tables, text

RATE = 8000


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Four clips of two of UrbanSound8K's classes: a sine of full scale, one half as loud and stereo, one in 24 bit, silence."""
    root = tmp_path_factory.mktemp("UrbanSound8K")
    (root / "metadata").mkdir()
    sine = np.sin(2 * np.pi * 500 * np.arange(4 * RATE) / RATE)
    sounds = [
        ("1-3-0-0.wav", 1, 1, sine, RATE, "PCM_16"),
        ("1-3-0-1.wav", 1, 2, np.stack([sine / 2, sine / 2], axis=1)[:RATE], RATE, "PCM_16"),
        ("2-3-0-0.wav", 2, 1, sine[: 2 * RATE], 2 * RATE, "PCM_24"),
        ("3-8-0-0.wav", 2, 1, np.zeros(RATE), RATE, "PCM_16"),
    ]
    lines = ["slice_file_name,fsID,salience,fold,classID,class"]
    for name, fold, salience, audio, rate, depth in sounds:
        recording, class_id = name.split("-")[:2]
        (root / "audio" / f"fold{fold}").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "audio" / f"fold{fold}" / name, audio, rate, subtype=depth)
        label = {"3": "dog_bark", "8": "siren"}[class_id]
        lines.append(f"{name},{recording},{salience},{fold},{class_id},{label}")
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines))
    return root


def test_the_facts_are_those_of_the_files(small):
    found = facts(small)
    dog, siren = found.classes
    assert (dog.label, dog.clips[1], dog.clips[2], dog.clips[10]) == ("dog_bark", 2, 1, 0)
    assert (dog.recordings[1], dog.recordings[2], found.total_recordings) == (1, 1, 3)
    assert (dog.official[1], siren.official[4]) == (100, 166)
    assert dog.duration_s == (1.0, 1.0, 4.0)
    assert dog.short == pytest.approx(2 / 3)
    assert (sum(dog.histogram), dog.histogram[-1]) == (3, 1)
    assert dog.salience == {"1": 2, "2": 1}
    assert dog.level_dbfs[1] == pytest.approx(0, abs=0.01)
    assert siren.level_dbfs == (-120, -120, -120)
    assert (found.rates, found.channels, found.depths) == ({8000: 3, 16000: 1}, {1: 3, 2: 1}, {"PCM_16": 3, "PCM_24": 1})
    assert found.total_s == 7.0


def test_the_example_of_a_class_is_drawn_by_the_seed(tones):
    first = [c.example for c in facts(tones, seed=0).classes]
    assert first == [c.example for c in facts(tones, seed=0).classes]
    assert first != [c.example for c in facts(tones, seed=1).classes]
    assert all((tones / example).is_file() for example in first)


def test_a_table_has_totals_and_what_is_missing_of_the_official_clips(small):
    clips = tables(facts(small))[0]
    rows = {row[0]: row[1:] for row in clips.rows}
    assert rows["dog_bark"][-3:] == ("3", "1,000", "0%")
    assert rows["total"][:2] == ("2", "2")
    assert rows["official"][-3] == "1,929"
    assert clips.totals == 3


def test_other_classes_have_no_official_share_and_no_salience_without_its_column(tones):
    found = tables(facts(tones))
    assert [table.title for table in found] == ["Clips", "Recordings", "Durations", "Files", "Loudness"]
    assert found[0].head == ("class \\ fold", "1", "2", "3", "4", "total")


class Page(HTMLParser):
    """Collects the cells, pictures and addresses of a page, and checks that its elements close in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.images, self.addresses = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.images += [dict(attrs)] if tag in ("img", "svg") else []
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag in ("th", "td"):
            self.cells.append("")
        if tag == "th":
            assert dict(attrs)["scope"] in ("row", "col")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


def test_the_page_has_the_same_numbers_as_the_text_and_asks_for_nothing_outside(small):
    found = facts(small)
    page = Page(html(found))
    cells = [cell for table in tables(found) for row in (table.head, *table.rows) for cell in row]
    assert page.cells == cells
    words = text(found).split()
    assert all(part in words for cell in cells for part in cell.split())
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)
    assert len(page.images) == 3 + len(found.classes)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"<script|@import|url\(|<link", html(found))


def test_names_that_look_like_markup_stay_words(tones, tmp_path):
    root = shutil.copytree(tones, tmp_path / "<b>&amp;$root")
    table = root / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text().replace(",low", ",<script>low"))
    page = html(facts(root))
    assert "<script>" not in page
    assert "&lt;script&gt;low" in page
    assert "&lt;b&gt;&amp;amp;$root" in page


@pytest.mark.parametrize("samples", [0, 1, 100, 9 * RATE])
def test_clips_of_any_length_have_a_picture(tones, tmp_path, samples):
    root = shutil.copytree(tones, tmp_path / "copy")
    for path in root.rglob("*-1-0-0.wav"):
        soundfile.write(path, np.zeros(samples), RATE)
    assert html(facts(root)).count("data:image/png") == 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"RIFF"), "cannot be decoded; `urbandetect data verify` names all such files"),
        (lambda path: path.unlink(), "is listed in the CSV and is not there"),
        (lambda path: soundfile.write(path, np.array([np.nan]), RATE, subtype="FLOAT"), "no finite numbers"),
    ],
)
def test_a_spoilt_clip_is_one_clear_line_and_no_page_is_left(tones, tmp_path, spoil, said):
    root = shutil.copytree(tones, tmp_path / "copy")
    spoil(root / "audio" / "fold1" / "100-0-0-0.wav")
    result = CliRunner().invoke(cli, ["data", "report", str(root), "--out", str(tmp_path / "page.html")])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(str(root / "audio" / "fold1" / "100-0-0-0.wav"))
    assert said in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_the_command_writes_the_page_and_answers_people_and_programs(tones, tmp_path):
    out = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(cli, ["data", "report", str(tones), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "72 clips of 3 classes" in result.stdout
    assert result.stderr == f"{out} has the pictures\n"
    assert out.read_text().startswith("<!doctype html>")
    result = CliRunner().invoke(cli, ["data", "report", str(tones), "--out", str(out), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["classes"][0]["clips"] == {"1": 6, "2": 6, "3": 6, "4": 6}


def test_without_matplotlib_the_extra_is_named(tones, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["data", "report", str(tones)])
    assert isinstance(result.exception, ConfigError)
    assert "-m pip install 'urbandetect[train]'" in str(result.exception)


def test_neither_command_needs_torch(tones, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from click.testing import CliRunner; from detector.cli import cli\n"
        f"for args in (['verify', {str(tones)!r}], ['report', {str(tones)!r}, '--out', {str(tmp_path / 'page.html')!r}]):\n"
        "    CliRunner().invoke(cli, ['data', *args], catch_exceptions=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
