"""The log of scores beside the loop: bounded on disk, never in the way, and honest about what is missing."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector import score_log as score_log_module
from detector.config import ScoreLogSettings, Settings, SourceSettings, check, scores_folder
from detector.errors import ConfigError
from detector.model import Model, Threshold
from detector.observer import Sound
from detector.score_file import About, header, logs, read
from detector.score_log import BLOCK_S, WAITING, Folder, ScoreLog
from detector.tracker import Change

ABOUT = About("street", "mic1", "urban 0.1.0", "ab" * 32, ("siren",), 2048, 22050, None)
LEVELS = {"loud": Threshold(0.5, 0.25, 0.1, 0.2), "so_far": Threshold(1.0, 0.25, 0.1, 0.2)}


@pytest.fixture
def score_log(loudness_model, tmp_path):
    """A log of two sources, and what hears for them: rows of the loudness model, from any sample on."""
    settings = Settings(
        node="street", source=(SourceSettings("a"), SourceSettings("b")), log_scores=ScoreLogSettings(str(tmp_path / "logs"))
    )
    made = ScoreLog(settings, Model(loudness_model, "cpu").description)
    for source in ("a", "b"):
        made.use(source, LEVELS)

    def hear(source, session, first, rows, score=0.4):
        samples = np.zeros(rows * 800, np.float32)
        scores = np.full((rows, 2), score, np.float32)
        made.stepped(0.01, [Sound(source, session, first, 1.8e9 + first / 8000, samples, scores, np.full(rows, 1e-4))])

    made.hear = hear
    yield made
    made.stop()


def until(condition, within_s=10.0):
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.01)


def parts_of(folder, source="a"):
    return [part for about, parts in map(read, logs([folder])) if about.source == source for part in parts]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"max_mb": 0.5}, "log_scores.max_mb must be 1 to 10000000"),
        ({"max_days": 0.0}, "log_scores.max_days above 0"),
        ({"folder": "scores"}, "is too long to name files of"),
    ],
)
def test_impossible_settings_of_the_log_are_named(wanted, said):
    settings = Settings(source=(SourceSettings("𐍈" * (51 if "folder" in wanted else 3)),), log_scores=ScoreLogSettings(**wanted))
    with pytest.raises(ConfigError, match=said):
        check(settings, "detector.toml")


def test_a_name_is_a_folder_of_the_service_s_state_or_of_this_user_s_and_a_path_is_a_path(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/.state")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    settings = Settings(log_scores=ScoreLogSettings("scores"))
    assert str(scores_folder(settings)) == "/home/x/.state/urbandetect/scores"
    assert str(scores_folder(Settings(log_scores=ScoreLogSettings("/data/s")))) == "/data/s"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/urbandetect")
    assert str(scores_folder(settings)) == "/var/lib/urbandetect/scores"


@given(
    st.integers(1500, 40_000),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 3000)), min_size=1, max_size=60),
)
def test_never_more_than_max_mb_lies_on_disk_whoever_writes_how_much(tmp_path_factory, most, writes):
    path = tmp_path_factory.mktemp("capped")
    folder = Folder(path, most, 1e6)
    for source, size in writes:
        about = About(**{**ABOUT.__dict__, "source": source})
        try:
            folder.write(about, bytes(size))
        except ConfigError:
            assert len(header(about)) + size > most
        files = list(path.iterdir())
        assert folder.size == sum(file.stat().st_size for file in files) <= most
        assert all(file.read_bytes().startswith(header(about)[:30]) for file in files)
    shutil.rmtree(path)


def test_whole_files_go_the_oldest_first_and_those_that_are_too_old(tmp_path):
    folder = Folder(tmp_path, 10_000, 3600)
    for number, age_s in enumerate((5000, 3000, 1000)):
        file = tmp_path / f"old-{number}.scores"
        file.write_bytes(bytes(4000 if number else 100))
        os.utime(file, (time.time() - age_s, time.time() - age_s))
    folder.write(ABOUT, bytes(100))
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("old")) == ["old-1.scores", "old-2.scores"]
    folder.write(ABOUT, bytes(3000))
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("old")] == ["old-2.scores"]


def test_a_block_that_goes_on_a_file_looks_through_no_folder_until_that_is_full_or_an_hour_is_over(tmp_path, monkeypatch):
    glob, looks, clock = Path.glob, [], [0.0]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: looks.append(pattern) or glob(self, pattern))
    monkeypatch.setattr(score_log_module.time, "monotonic", lambda: clock[0])
    folder = Folder(tmp_path, 100_000, 1e6)
    for _ in range(20):
        folder.write(ABOUT, bytes(100))
    assert len(looks) == 1
    old = tmp_path / "old-20240101T000010000000Z.scores"
    old.write_bytes(bytes(1000))
    os.utime(old, (1_704_067_210, 1_704_067_210))
    clock[0] += 3601
    folder.write(ABOUT, bytes(100))
    assert len(looks) == 2
    assert not old.exists()
    for _ in range(20):
        folder.write(ABOUT, bytes(5000))
        assert folder.size == sum(file.stat().st_size for file in tmp_path.iterdir()) <= 100_000


def test_a_write_that_the_disk_takes_half_of_leaves_nothing_and_the_next_one_is_whole(tmp_path):
    folder = Folder(tmp_path, 1_000_000, 1e6)
    folder.write(ABOUT, bytes(100))
    before = [file.read_bytes() for file in tmp_path.iterdir()]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            folder.write(ABOUT, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == before
    folder.write(ABOUT, bytes(100))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == folder.size == len(before[0]) + 100


def test_gaps_sessions_and_other_thresholds_are_parts_of_their_own_with_what_was_told(score_log, tmp_path):
    other = LEVELS | {"loud": Threshold(0.7, 0.3, 0.1, 0.2)}
    score_log.start()
    score_log.hear("a", "01", 0, 5)
    score_log.hear("a", "01", 4000, 5)  # follows
    score_log.event(
        {"source": "a", "start": "2026-11-25T06:15:03.218Z", "end": None}, Change("start", "loud", 0, 1600, 0.91234, 0.9, 0.1, 0.5)
    )
    score_log.hear("b", "03", 0, 5)
    score_log.hear("a", "01", 9000, 5)  # a gap of 1000 samples
    score_log.use("a", other)
    score_log.hear("a", "01", 13000, 5)
    score_log.event(
        {"source": "a", "start": "2026-11-25T06:15:03.218Z", "end": None}, Change("end", "loud", 0, 9600, 0.95, 0.9, 0.1, 0.5)
    )
    score_log.end("a")
    score_log.hear("a", "02", 0, 5)
    score_log.stop()
    parts = parts_of(tmp_path / "logs")
    found = [(part.session, part.first, part.rows) for part in parts]
    assert found == [
        ("01", 0, 10),
        ("01", 9000, 5),
        ("01", 13000, 5),
        ("02", 0, 5),
    ]
    assert [part.thresholds == other for part in parts] == [False, False, True, True]
    assert [[(told.phase, told.onset, told.score) for told in part.told] for part in parts] == [
        [("start", 0, 0.9123)],
        [],
        [("end", 0, 0.95)],
        [],
    ]
    assert [part.first for part in parts_of(tmp_path / "logs", "b")] == [0]
    assert score_log.facts()["score_log"]["rows"] == 30


def test_a_kill_costs_no_more_than_the_last_block_for_longer_ones_have_left(score_log, tmp_path):
    score_log.start()
    rows = round(BLOCK_S / 0.1)
    for step in range(3 * rows):
        score_log.hear("a", "01", step * 800, 1)
    until(lambda: score_log.facts()["score_log"]["rows"] == 2 * rows)
    assert sum(part.rows for part in parts_of(tmp_path / "logs")) == 2 * rows


def test_an_event_that_has_ended_is_in_the_log_five_seconds_later_at_most(score_log, tmp_path):
    score_log.start()
    event = {"source": "a", "start": "2026-11-25T06:15:03.218Z", "end": "2026-11-25T06:15:04.218Z"}
    for step in range(51):
        score_log.hear("a", "01", step * 800, 1)
        if step == 10:
            score_log.event(event, Change("end", "loud", 0, 8000, 0.9, 0.9, 0.1, 0.5))
    until(lambda: score_log.facts()["score_log"]["rows"] == 50)
    assert [told.utc for part in parts_of(tmp_path / "logs") for told in part.told] == [event["end"]]


def test_a_folder_that_cannot_be_written_is_said_once_tried_again_and_counted(score_log, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "logs").write_text("in the way")
    score_log.start()
    for session in ("01", "02", "03"):
        score_log.hear("a", session, 0, 5)
    score_log.end("a")
    until(lambda: score_log.facts()["score_log"]["dropped"] == 15)
    assert score_log.facts()["score_log"]["trouble"] == "File exists"
    (tmp_path / "logs").unlink()
    score_log.hear("a", "04", 0, 5)
    score_log.end("a")
    until(lambda: score_log.facts()["score_log"]["rows"] == 5)
    assert score_log.facts()["score_log"]["trouble"] == ""
    assert [line for line in caplog.text.splitlines() if "cannot be written" in line or "written again" in line] == [
        line for line in caplog.text.splitlines() if "15 rows are missing" in line or "it is tried again, hearing goes on" in line
    ]
    assert caplog.text.count("cannot be written (File exists); set another log_scores.folder, or change who may write there") == 1


def test_a_disk_that_hangs_holds_up_nothing_and_memory_stays_bounded(score_log, monkeypatch, caplog):
    lets_go = threading.Event()
    monkeypatch.setattr(Folder, "write", lambda *_: lets_go.wait())
    score_log.start()
    begin_s = time.monotonic()
    for session in range(3 * WAITING):
        score_log.hear("a", f"{session:02x}", 0, 1)
    took_s = time.monotonic() - begin_s
    assert took_s < 1
    assert score_log._queue.qsize() == WAITING
    assert 3 * WAITING - WAITING - 3 <= score_log.facts()["score_log"]["dropped"] <= 3 * WAITING - WAITING
    assert caplog.text.count("the disk is too slow") == 1
    lets_go.set()


def test_an_error_of_the_writer_s_own_ends_neither_it_nor_hearing(score_log, monkeypatch, caplog):
    monkeypatch.setattr("detector.score_log.pack_numbers", lambda *_: 1 / 0)
    score_log.start()
    score_log.hear("a", "01", 0, 5)
    score_log.end("a")
    until(lambda: score_log.facts()["score_log"]["dropped"] == 5)
    assert "ZeroDivisionError" in caplog.text
    assert score_log._thread.is_alive()


def test_many_sources_that_fill_their_blocks_at_once_lose_none(loudness_model, tmp_path):
    names = [f"s{i}" for i in range(150)]
    settings = Settings(source=tuple(map(SourceSettings, names)), log_scores=ScoreLogSettings(str(tmp_path / "logs")))
    made = ScoreLog(settings, Model(loudness_model, "cpu").description)
    for name in names:
        made.use(name, LEVELS)
        rows = np.zeros((20, 2), np.float32)
        made.stepped(0.01, [Sound(name, "01", 0, 1.8e9, np.zeros(20 * 800, np.float32), rows, np.full(20, 1e-4))])
    for name in names:
        made.end(name)  # nobody takes from the queue yet
    made.start()
    made.stop()
    assert made.facts()["score_log"]["dropped"] == 0
    assert {about.source for about, _ in map(read, logs([tmp_path / "logs"]))} == set(names)


def test_rows_of_a_clock_that_was_not_set_are_not_too_old(tmp_path):
    early = tmp_path / "a-19700101T000010000000Z.scores"
    early.write_bytes(b"x")
    os.utime(early, (10, 10))
    late = tmp_path / "a-20240101T000010000000Z.scores"
    late.write_bytes(b"x")
    os.utime(late, (1_704_067_210, 1_704_067_210))
    Folder(tmp_path, 10**6, 86_400).write(ABOUT, b"y")
    assert early.exists()
    assert not late.exists()
