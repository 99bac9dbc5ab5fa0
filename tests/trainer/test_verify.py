import csv
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import InputError
from trainer.verify import OFFICIAL, verify

RATE = 8000


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A part of UrbanSound8K: two clips of every class, each of its own recording, in folds 1 and 2."""
    root = tmp_path_factory.mktemp("UrbanSound8K")
    random = np.random.default_rng(3)
    rows = []
    for fold in (1, 2):
        (root / "audio" / f"fold{fold}").mkdir(parents=True)
        for class_id, label in enumerate(OFFICIAL):
            name = f"{fold}000{class_id}-{class_id}-0-0.wav"
            soundfile.write(root / "audio" / f"fold{fold}" / name, 0.1 * random.standard_normal(RATE // 2), RATE)
            rows.append([name, f"{fold}000{class_id}", 1.0, 1.5, 1, fold, class_id, label])
    (root / "metadata").mkdir()
    with (root / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"])
        writer.writerows(rows)
    return root


@pytest.fixture
def street(original, tmp_path):
    return shutil.copytree(original, tmp_path / "street")


def clip(root, fold=1, class_id=0):
    return root / "audio" / f"fold{fold}" / f"{fold}000{class_id}-{class_id}-0-0.wav"


def edit(root, old, new):
    table = root / "metadata" / "UrbanSound8K.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))


def said(root, **options):
    verdict = verify(root, **options)
    return [str(finding) for finding in verdict.findings], [str(note) for note in verdict.notes]


def test_a_part_of_the_data_set_is_sound_and_called_a_part(street):
    findings, notes = said(street)
    assert not findings
    assert any("20 of 8,732 clips: a part of UrbanSound8K; a figure trained on it is not comparable" in note for note in notes)
    assert any("fold 1: 10 of 873 clips (air_conditioner 1 of 100, car_horn 1 of 36" in note for note in notes)
    assert any("fold 10: 0 of 837 clips" in note for note in notes)
    assert any("checksums are not checked" in note for note in notes)


def test_with_complete_a_part_is_a_finding(street):
    findings, _ = said(street, complete=True)
    assert len(findings) == 11  # the whole, and each of the ten folds
    assert "20 of 8,732 clips" in findings[0]


def test_the_official_counts_add_up():
    assert [sum(counts) for counts in zip(*OFFICIAL.values(), strict=True)] == [
        *(873, 888, 925, 990, 936),
        *(823, 838, 806, 816, 837),
    ]
    assert [sum(counts) for counts in OFFICIAL.values()] == [1000, 429, 1000, 1000, 1000, 1000, 374, 1000, 929, 1000]


def test_other_classes_than_the_official_ten_are_sound_and_counts_are_not_compared(tones):
    findings, notes = said(tones)
    assert not findings
    assert "its classes are high, low, middle, not UrbanSound8K's ten: counts are not compared" in notes[0]
    assert len(said(tones, complete=True)[0]) == 1


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("1,1,car_horn", "1,1,siren", ":3: 10001-1-0-0.wav has classID 1 and class siren; classID 1 is car_horn"),
        ("1,1,car_horn", "1,12,car_horn", "classID 12 is none of the classes"),
        ("1,1,car_horn", "1,8,siren", "its name says 10001 and 1; take the line from the official CSV"),
        ("10001,1.0", "777,1.0", "10001-1-0-0.wav is listed with fsID 777 and classID 1, its name says 10001 and 1"),
        ("1,1,car_horn", "one,1,car_horn", ":3: fold 'one' and classID '1' must be whole numbers"),
        ("1,1,car_horn", "11,1,car_horn", "is in fold 11; folds are 1 to 10"),
        ("10000-0-0-0.wav", "10001-1-0-0.wav", ":3: 10001-1-0-0.wav is listed on line 2 already; remove one of the lines"),
        ("10001-1-0-0.wav", "horn.wav", "horn.wav is not named fsID-classID-occurrenceID-sliceID.wav"),
        ("10001-1-0-0.wav", "10001-1-0-9.wav", "10001-1-0-9.wav: is listed on line 3 and is not there; get it, or remove the line"),
        ("10001-1-0-0.wav", "10001-1-0-9.wav", "10001-1-0-0.wav: is not listed in UrbanSound8K.csv; remove it"),
        ("20001,1.0", "10001,1.0", "recording 10001 (car_horn) is in folds 1, 2; keep it in one"),
    ],
)
def test_a_wrong_line_of_the_csv_is_named_with_what_to_do(street, old, new, line):
    edit(street, old, new)
    assert any(line in finding for finding in said(street)[0])


def test_a_classid_with_two_names_is_found_in_any_data_set(tones, tmp_path):
    root = shutil.copytree(tones, tmp_path / "copy")
    edit(root, ",2,0,low", ",2,0,deep")
    assert [f.split(": ", 1)[1] for f in said(root)[0]] == ["200-0-0-0.wav has classID 0 and class deep; classID 0 is low"]


def test_more_clips_than_the_official_ones_are_a_finding_even_in_a_part(street):
    for index in range(36):
        name = f"90{index}-1-0-0.wav"
        soundfile.write(clip(street).with_name(name), 0.1 * np.random.default_rng(index).standard_normal(100), RATE)
        edit(street, "20000-0", f"{name},90{index},1.0,1.0125,1,1,1,car_horn\n20000-0")
    (finding,) = said(street)[0]
    assert "fold 1 has 37 clips of car_horn, the official one 36" in finding


def test_a_recording_in_two_folds_with_two_classes_is_a_note_because_the_official_folds_have_such(street):
    edit(street, "20002-2-0-0.wav,20002", "10001-2-0-0.wav,10001")
    clip(street, 2, 2).rename(clip(street, 2, 2).with_name("10001-2-0-0.wav"))
    findings, notes = said(street)
    assert not findings
    assert any("recording 10001 is in fold 1 as car_horn, in fold 2 as children_playing" in note for note in notes)


def infinite(path):
    soundfile.write(path, np.array([0.0, np.inf, np.nan]), RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda path: path.write_bytes(b"<html>404</html>"), "cannot be decoded; extract it from the archive again"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: soundfile.write(path, np.zeros(0), RATE), "has no samples"),
        (infinite, "holds values that are no finite numbers"),
        (lambda path: soundfile.write(path, np.ones(5 * RATE), RATE), "lasts 5.00 s, a clip at most 4 s; cut it"),
        (lambda path: path.write_bytes(clip(path.parents[2], 2).read_bytes()), "has the same bytes as"),
    ],
)
def test_a_spoilt_file_is_named_and_the_rest_is_still_checked(street, spoil, line):
    spoil(clip(street, 1, 3))
    clip(street, 1, 4).unlink()
    findings, _ = said(street)
    assert len(findings) == 2
    assert any("10003-3-0-0.wav" in finding and line in finding for finding in findings)


def test_a_file_that_the_system_does_not_read_is_named(street):
    clip(street).unlink()
    clip(street).symlink_to("/proc/self/mem")  # its first page is nobody's, not even root's
    (finding,) = said(street)[0]
    assert finding.endswith("10000-0-0-0.wav: cannot be read (Input/output error); extract it from the archive again")


def test_silence_a_short_clip_and_twins_in_one_fold_are_notes(street):
    soundfile.write(clip(street, 1, 3), np.zeros(RATE // 2), RATE)
    soundfile.write(clip(street, 1, 4), 0.1 * np.random.default_rng(0).standard_normal(RATE // 4), RATE)
    shutil.copy(clip(street, 1, 5), clip(street, 1, 6))
    findings, notes = said(street)
    assert not findings
    assert any("10003-3-0-0.wav: is digital silence" in note for note in notes)
    assert any("10004-4-0-0.wav: lasts 0.25 s, by the CSV 0.50 s; is it an unfinished download?" in note for note in notes)
    assert any("10006-6-0-0.wav: has the same bytes as" in note and "10005-5-0-0.wav" in note for note in notes)


def test_hidden_files_of_the_archive_are_no_finding(street):
    (street / "audio" / "fold1" / ".DS_Store").write_bytes(b"\0")
    assert verify(street).sound


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("folder", [".", "metadata"])
def test_every_checksum_of_the_archives_index_is_checked(street, folder):
    clips = {path.stem: {"audio": [str(path.relative_to(street)), md5(path)]} for path in street.rglob("*.wav")}
    clips["30000-0-0-0"] = {"audio": ["audio/fold3/30000-0-0-0.wav", "0" * 32]}
    table = {"UrbanSound8K.csv": ["metadata/UrbanSound8K.csv", "0" * 32]}
    index = street / folder / "urbansound8k_index_1.0.json"
    index.write_text(json.dumps({"version": "1.0", "clips": clips, "metadata": table}))
    findings, notes = said(street)
    assert not findings
    assert any("UrbanSound8K.csv: has not the checksum" in note and "this part of the data has its own" in note for note in notes)
    assert any("21 of its 22 checksums are checked; the other files are not here" in note for note in notes)
    soundfile.write(clip(street), 0.2 * np.random.default_rng(9).standard_normal(RATE // 2), RATE)
    (finding,) = said(street)[0]
    assert "10000-0-0-0.wav: has not the checksum of urbansound8k_index_1.0.json; it was changed or damaged" in finding
    assert any("30000-0-0-0.wav: is listed in urbansound8k_index_1.0.json" in f for f in said(street, complete=True)[0])


def test_md5sum_lists_are_checked_too(street):
    lines = [f"{md5(path).upper()}  {path.relative_to(street)}" for path in sorted(street.rglob("*.wav"))]
    (street / "all.md5").write_text("\n".join([*lines, "not a checksum"]))
    (street / "metadata" / "csv.md5").write_text(f"{md5(street / 'metadata' / 'UrbanSound8K.csv')} *UrbanSound8K.csv\n")
    findings, notes = said(street)
    assert [finding.split("/")[-1] for finding in findings] == ["all.md5:21: is not `MD5  path`; write the list with md5sum"]
    assert any("all.md5: 20 of its 20 checksums are checked" in note for note in notes)
    assert any("csv.md5: 1 of its 1 checksums are checked" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "line"), [("{", "cannot be read (no JSON); get it again, or remove it"), ("{}", "0 of its 0 checksums are checked")]
)
def test_an_index_that_says_nothing_is_a_finding(street, text, line):
    (street / "bad_index.json").write_text(text)
    (finding,) = said(street)[0]
    assert line in finding


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a,b\n1,2\n", "has no column slice_file_name, fsID, fold, classID, class"),
        ("\ud800", "is not a CSV file"),
    ],
)
def test_without_a_csv_to_check_by_there_is_one_clear_line(tmp_path, text, said):
    (tmp_path / "metadata").mkdir()
    if text:
        (tmp_path / "metadata" / "UrbanSound8K.csv").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=said):
        verify(tmp_path)


def test_the_command_says_every_finding_on_a_line_and_exits_64(street):
    edit(street, "10001,1.0", "777,1.0")
    clip(street).write_bytes(b"")
    command = [sys.executable, "-c", "from detector.cli import main; main()", "data", "verify", str(street)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 64
    lines = [line for line in result.stdout.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 2
    assert result.stderr == f"urbandetect: {street}: 2 findings in 20 clips; each says what to do\n"


def test_the_command_answers_people_and_programs(street):
    result = CliRunner().invoke(cli, ["data", "verify", str(street)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"{street}: 20 clips, all sound\n")
    clip(street).write_bytes(b"")
    result = CliRunner().invoke(cli, ["data", "verify", str(street), "--json"])
    assert isinstance(result.exception, InputError)
    verdict = json.loads(result.stdout)
    assert (verdict["sound"], verdict["clips"]) == (False, 20)
    assert [(f["check"], f["where"], f["what"]) for f in verdict["findings"]] == [("audio", str(clip(street)), "cannot be decoded")]
