"""15: the outbox's disk is full, damaged or read-only, or the outbox is at its cap. Detection goes on, and it is said."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest
import soundfile


@pytest.fixture
def settings(tmp_path):
    def write(text):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n{text}')

    return write


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root that may mount: run the tests as root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def onsets(witness):
    told = [json.loads(line.split(" ", 2)[2]) for line in witness.lines if "/mic1/event " in line]
    ended = [int(event["id"].rsplit("-", 1)[1]) for event in told if event["phase"] == "end" and event["label"] == "loud"]
    return list(dict.fromkeys(ended))


def outbox(witness):
    """What `health` said last of the outbox."""
    return json.loads([line for line in witness.lines if "/health " in line][-1].split(" ", 2)[2])["outbox"]


def test_15_a_full_disk_is_said_detection_goes_on_and_what_waited_in_memory_reaches_the_disk_and_the_broker(
    broker, daemon, settings, bursts, small_disk
):
    settings(f"[outbox]\npath = '{small_disk}/outbox.db'\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("hearing")
    time.sleep(0.3)
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):  # no space left
        while os.write(filler, bytes(1000)):
            pass
    os.close(filler)
    for _ in range(100):
        run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("the disk takes nothing (database or disk is full)")
    broker.start()
    witness = broker.witness()
    witness.wait_for(lambda line: "/mic1/event" in line and "-801600" in line and '"phase":"end"' in line, within_s=40)
    assert onsets(witness) == [1600 + 8000 * i for i in range(101)]
    assert run.errors.read_text().count("the disk takes nothing") == 1
    (small_disk / "filler").unlink()
    time.sleep(10)  # it is tried again after ten seconds
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("the disk takes messages again")


def test_15_a_read_only_disk_costs_no_event_while_the_daemon_lives(broker, daemon, settings, bursts, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    settings(f"[outbox]\npath = '{small_disk}/outbox.db'\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    run = daemon("--input", "-")
    for _ in range(10):
        run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("messages wait in memory")
    broker.start()
    witness = broker.witness()
    witness.wait_for(lambda line: "/mic1/event" in line and "-73600" in line and '"phase":"end"' in line, within_s=40)
    assert onsets(witness) == [1600 + 8000 * i for i in range(10)]
    run.send(signal.SIGTERM)
    assert run.end() == 0


def test_15_a_damaged_outbox_is_set_aside_and_said(broker, daemon, settings, bursts, tmp_path):
    settings(f"[outbox]\npath = './outbox.db'\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    (tmp_path / "outbox.db").write_bytes(b"SQLite format 3\0" + b"no database at all" * 1000)
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert "set aside as outbox.db.damaged" in run.errors.read_text()
    assert (tmp_path / "outbox.db.damaged").exists()


def test_15_at_its_cap_the_oldest_events_go_and_are_counted(broker, daemon, settings, bursts):
    settings(f"[outbox]\npath = './outbox.db'\nmax_mb = 0.05\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    run = daemon("--input", "-")
    for _ in range(100):
        run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("too full or too old: the oldest messages go")
    time.sleep(1.5)
    run.send(signal.SIGSTOP)
    broker.start()
    witness = broker.witness()
    run.send(signal.SIGCONT)
    witness.wait_for(lambda line: "/mic1/event" in line and "-793600" in line and '"phase":"end"' in line, within_s=40)
    kept = onsets(witness)
    assert kept == [1600 + 8000 * i for i in range(100 - len(kept), 100)]
    assert 20 < len(kept) < 100
    run.send(signal.SIGTERM)
    assert run.end() == 0
    witness.wait_for(lambda line: line.endswith("street/status offline"))
    dropped = outbox(witness)["dropped"]
    assert 2 * (100 - len(kept)) - 1 <= dropped <= 2 * (101 - len(kept)) + 2  # starts, ends, and so_far's own


@pytest.mark.parametrize("ends", ["by itself", "SIGTERM"])
def test_events_that_neither_broker_nor_disk_took_are_said_to_be_lost_in_the_last_line(
    broker, daemon, settings, bursts, tmp_path, ends
):
    settings(f"[outbox]\npath = '/proc/x/outbox.db'\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    soundfile.write(tmp_path / "short.wav", bursts(1.0, (0.2, 0.5)), 8000)
    run = daemon(*(("--input", "short.wav", "--speed", "max") if ends == "by itself" else ("--input", "-")))
    if ends == "SIGTERM":
        run.say(bursts(1.0, (0.2, 0.5)))
        run.wait_for_error("hearing")
        time.sleep(0.5)
        run.send(signal.SIGTERM)
    assert run.end() == (75 if ends == "by itself" else 0)
    *before, last = run.errors.read_text().splitlines()
    assert last.startswith("urbandetect: mqtt 127.0.0.1" if ends == "by itself" else "ERROR mqtt 127.0.0.1")
    assert "; 2 events are lost, for the outbox could not keep them (No such file or directory); `urbandetect doctor`" in last
    assert "when urbandetect runs again" not in last
    assert not [line for line in before if "lost" in line]


def test_two_daemons_do_not_share_an_outbox(daemon, settings, bursts, broker):
    settings(f"[outbox]\npath = './outbox.db'\n[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    first = daemon("--input", "-")
    first.say(bursts(0.5))
    first.wait_for_error("hearing")
    second = daemon("--input", "-")
    assert second.process.wait(10) == 75
    (line,) = second.errors.read_text().splitlines()
    assert "/outbox.db: another urbandetect has it open; stop that one" in line


@pytest.mark.parametrize(
    ("table", "folder", "code", "said"),
    [
        ("clips", "/proc/x", 78, "clips /proc/x: cannot be written (No such file or directory); 1 clips were not kept; "),
        ("log_scores", "/proc/x", 78, "score log /proc/x: cannot be written (No such file or directory); 10 rows were not kept; "),
        ("clips", "full", 75, "/clips: cannot be written (No space left on device); 1 clips were not kept; make room, or "),
        ("log_scores", "full", 75, "/clips: cannot be written (No space left on device); 10 rows were not kept; make room, or "),
    ],
)
def test_a_recording_whose_clips_or_scores_could_not_be_written_says_why_and_what_to_do_and_ends_as_failed(
    daemon, settings, bursts, request, tmp_path, table, folder, code, said
):
    if folder == "full":
        disk = request.getfixturevalue("small_disk")
        folder = disk / "clips"
        folder.mkdir()
        with contextlib.suppress(OSError):  # no space left
            (disk / "filler").write_bytes(bytes(300_000))
        with contextlib.suppress(OSError):
            (disk / "rest").write_bytes(bytes(1))
    labels = "\nlabels = ['loud']" if table == "clips" else ""
    settings(f"[{table}]\nfolder = '{folder}'{labels}")
    soundfile.write(tmp_path / "short.wav", bursts(1.0, (0.2, 0.5)), 8000)
    run = daemon("--input", "short.wav", "--speed", "max")
    assert run.end() == code
    last = run.errors.read_text().splitlines()[-1]
    assert said in last
    assert f"set another {table}.folder" in last
    assert [json.loads(line)["phase"] for line in run.lines] == ["start", "end"]


@pytest.mark.parametrize("table", ["clips", "log_scores"])
def test_a_daemon_that_is_stopped_says_what_could_not_be_written_and_ends_well(daemon, settings, bursts, table):
    settings(f"[{table}]\nfolder = '/proc/x'")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert "were not kept; set another" in run.errors.read_text().splitlines()[-1]
