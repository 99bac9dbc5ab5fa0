"""Score logs as files: what they resolve, and what is left of one that was cut off or damaged."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.errors import InputError
from detector.model import Threshold
from detector.score_file import HEAD, About, Part, Told, block, dequantise, header, logs, pack_numbers, quantise, read, stretches

ABOUT = About("street", "mic1", "urban 0.1.0", "ab" * 32, ("siren", "dog_bark"), 2048, 22050, None)
THRESHOLDS = {"siren": Threshold(0.99, 0.5, 0.1, 0.6), "dog_bark": Threshold(0.9, 0.4, 0.0, 0.6, 30.0)}


def part(rows=20, first=0, session="5d0c2e8f91a4", seed=0):
    random = np.random.default_rng(seed)
    scores = random.uniform(0, 1, (rows, 2)).astype(np.float32)
    told = (Told("start", "siren", first, first + 2048, 0.9931, "2026-11-25T06:15:03.218Z"),)
    packed = pack_numbers(scores, random.uniform(-120, 0, rows))
    return Part(session, first, round(1.8e9 + first / 22050, 3), rows, THRESHOLDS, told, packed), scores


def logit(scores):
    return np.log(scores) - np.log1p(-scores)


def test_scores_are_right_to_a_128th_of_a_logit_so_that_thresholds_near_1_are_told_apart():
    scores = (1 / (1 + np.exp(-np.linspace(-13, 13, 50_001)))).astype(np.float32)
    kept = dequantise(quantise(scores))
    error = np.abs(kept.astype(np.float64) - scores)
    near_1 = 1 - scores.astype(np.float64) > 1e-4  # beyond it float32 itself is coarser
    assert np.abs(logit(kept[near_1].astype(np.float64)) - logit(scores[near_1].astype(np.float64))).max() < 1 / 128 + 1e-3
    assert error.max() <= 0.002
    assert error[scores > 0.999].max() <= 1e-5
    levels = np.array([0.99, 0.991, 0.995, 0.999, 0.9995, 0.9999], np.float32)
    assert len(set(quantise(levels).tolist())) == len(levels)
    assert (np.diff(kept) >= 0).all()


def test_0_and_1_stay_what_they_are():
    ends = np.array([0, 1e-12, 1], np.float32)
    assert dequantise(quantise(ends)).tolist() == [0, 0, 1]


def test_what_is_written_is_read_again(tmp_path):
    one, scores = part()
    (tmp_path / "a.scores").write_bytes(header(ABOUT) + block(one))
    about, parts = read(tmp_path / "a.scores")
    assert (about, parts) == (ABOUT, [one])
    kept, dbfs = parts[0].numbers(2)
    np.testing.assert_array_equal(kept, dequantise(quantise(scores)))
    assert dbfs.min() >= -120


@given(st.data())
def test_of_a_file_cut_off_anywhere_every_whole_block_is_read_and_of_a_damaged_one_all_others(tmp_path_factory, data):
    parts = [part(first=i * 20 * 2048, seed=i)[0] for i in range(4)]
    blocks, file = [block(each) for each in parts], tmp_path_factory.getbasetemp() / "cut.scores"
    whole = header(ABOUT) + b"".join(blocks)
    at = data.draw(st.integers(len(header(ABOUT)), len(whole) - 1))
    ends = np.cumsum([len(header(ABOUT)), *map(len, blocks)])
    logging.disable()
    try:
        file.write_bytes(whole[:at])
        assert read(file)[1] == parts[: int((ends[1:] <= at).sum())]
        bit = data.draw(st.integers(0, 7))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        hit = int((ends[1:] <= at).sum())
        assert read(file)[1] == parts[:hit] + parts[hit + 1 :]
    finally:
        logging.disable(logging.NOTSET)


def test_what_is_torn_is_said_with_its_size(tmp_path, caplog):
    (tmp_path / "a.scores").write_bytes(header(ABOUT) + block(part()[0])[:-7])
    read(tmp_path / "a.scores")
    assert "are torn or damaged, their rows are left out" in caplog.text
    assert f"{len(block(part()[0])) - 7} bytes" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"no log", b'{"urbandetect":"scores","schema":2}\n', b"[1]\n", HEAD.pack(b"abcd", 1, 1, 1)]
)
def test_a_file_that_is_no_score_log_is_one_clear_line(tmp_path, content):
    (tmp_path / "a.scores").write_bytes(content)
    with pytest.raises(InputError, match=r"a.scores: is no score log of this version; .*log_scores") as error:
        read(tmp_path / "a.scores")
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_what_the_block_says_are_one_clear_line():
    one = part()[0]
    for wrong in (replace(one, rows=19), replace(one, packed=b"no stream")):
        with pytest.raises(InputError, match="session 5d0c2e8f91a4: its score log holds other numbers than it says; delete it"):
            wrong.numbers(2)


def test_a_reader_never_goes_on_across_a_gap_or_into_another_session():
    row = 20 * 2048
    parts = [part(first=0)[0], part(first=row)[0], part(first=2 * row + 1)[0], part(first=3 * row + 1, session="0a")[0]]
    found = list(stretches((ABOUT, each) for each in parts))
    assert [[each.first for _, each in stretch] for stretch in found] == [[0, row], [2 * row + 1], [3 * row + 1]]


def test_the_logs_of_a_folder_are_those_of_each_source_in_order(tmp_path):
    names = ["b-20261125T061503000000Z.scores", "a-20261126T000000000000Z.scores", "a-20261125T235959000000Z.scores", "other.txt"]
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in logs([tmp_path, tmp_path / names[0]])] == [names[2], names[1], names[0]]
