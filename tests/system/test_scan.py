"""Scanning an archive: the same events whatever happens in between, and whoever does the work."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from parts import as_nobody

from detector.archive import Job, Outcome, Recording, by_processes, examine, recordings
from detector.cli_scan import Progress, _into
from detector.errors import ConfigError, TryAgainError
from detector.events_file import labels_of
from detector.ledger import Ledger
from detector.model import Model
from detector.scan import Found

FILES, EACH_S = 24, 240


@pytest.fixture(scope="module")
def archive(tmp_path_factory, bursts):
    """Folders of recordings, each with events of its own; one that is damaged, and files that are none."""
    folder = tmp_path_factory.mktemp("archive")
    chance = random.Random(1)
    for number in range(FILES):
        loud = [(at := 5 * k + chance.random(), at + 0.3 + chance.random()) for k in range(6)]
        path = folder / f"{2010 + number % 3}" / f"{number:02}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.tile(bursts(30, *loud), EACH_S // 30), 8000)
    (folder / "2010" / "damaged.wav").write_text("no sound")
    (folder / "2010" / "notes.txt").write_text("no sound")
    (folder / "2010" / ".hidden.wav").write_text("no sound")
    return folder


@pytest.fixture
def scan(urbandetect, loudness_model, archive):
    return lambda *options: urbandetect("scan", "--model", loudness_model, archive, *options)


@pytest.fixture(scope="module")
def undisturbed(archive, loudness_model):
    """What one process finds, as lines."""
    done = subprocess.run(
        [Path(sys.executable).with_name("urbandetect"), "scan", "--model", loudness_model, "--jobs", "1", archive],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64
    assert "damaged.wav: is not an audio file" in done.stderr
    assert f"1 of {FILES + 1} files" in done.stderr
    names = [json.loads(line)["file"] for line in done.stdout.splitlines()]
    assert len(set(names)) == FILES
    assert names == sorted(names)
    assert len(names) > 40 * FILES
    return done.stdout


def children(pid):
    return [int(child) for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()]


def workers(pid: int) -> list[int]:
    """Those that hear."""
    return [each for each in children(pid) if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(true, within_s=20):
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("options", [["--jobs", "2"], ["--out", "e.jsonl", "--jobs", "3"]], ids=["lines", "file"])
def test_processes_find_in_the_same_order_what_one_finds(scan, undisturbed, tmp_path, options):
    done = scan(*options)
    assert done.returncode == 64
    assert ((tmp_path / "e.jsonl").read_text() if "--out" in options else done.stdout) == undisturbed


def test_killed_at_any_time_the_same_command_goes_on_to_the_same_output(start, archive, loudness_model, undisturbed, tmp_path):
    """kill -9 at eight random moments; no process stays behind, and no recording that was done is heard again."""
    out, ledger, chance = tmp_path / "e.jsonl", tmp_path / "e.jsonl.ledger", random.Random(7)
    command = ["urbandetect", "scan", "--model", loudness_model, "--jobs", "2", "--out", out, archive]
    done = [0]
    for _ in range(8):
        program = start(*command)
        log, before = tmp_path / "e.jsonl.ledger-wal", size(tmp_path / "e.jsonl.ledger-wal")
        wait_for(lambda log=log, before=before, running=program.process: size(log) != before or running.poll() is not None)
        time.sleep(chance.uniform(0, 0.3))
        workers = children(program.process.pid)
        program.process.kill()
        program.process.wait()
        wait_for(lambda workers=workers: not any(map(alive, workers)))
        with sqlite3.connect(ledger) as db:
            done.append(db.execute("SELECT count(*) FROM recording").fetchone()[0] if size(ledger) else 0)
        db.close()
    assert done == sorted(done)
    assert any(0 < count < FILES for count in done), done
    program = start(*command)
    assert program.end() == 64
    assert out.read_text() == undisturbed
    assert f"{FILES + 1 - done[-1]} of {FILES + 1 - done[-1]} recordings" in program.errors.read_text() or done[-1] == FILES + 1
    assert not list(tmp_path.glob(".*partial"))


def test_a_process_that_is_killed_costs_nothing_but_time(start, archive, loudness_model, undisturbed, tmp_path):
    program = start("urbandetect", "scan", "--model", loudness_model, "--jobs", "2", "--out", "e.jsonl", archive)
    wait_for(lambda: size(tmp_path / "e.jsonl.ledger-wal") > 20_000 and workers(program.process.pid))
    os.kill(workers(program.process.pid)[-1], signal.SIGKILL)
    assert program.end() == 64
    assert (tmp_path / "e.jsonl").read_text() == undisturbed


def test_a_recording_that_ends_its_process_twice_has_an_outcome_that_says_so(shipped_model, tmp_path):
    for name in ("bad.flac", "good.flac"):
        soundfile.write(tmp_path / name, np.zeros(22050 * 600, np.float32), 22050)
    model = Model(shipped_model, "cpu").description
    job = Job(shipped_model, model.sha256, "cpu", model.thresholds)
    begun = []

    def kill(name, seconds):
        if name.endswith("bad.flac"):
            begun.append(seconds)
            multiprocessing.active_children()[0].kill()

    bad, good = by_processes([str(tmp_path / "bad.flac"), str(tmp_path / "good.flac")], job, 1, kill)
    assert "bad.flac: ended the process that read it, 2 times" in bad.error
    assert len(begun) >= 2
    assert (good.error, good.seconds) == ("", 600.0)


def test_every_format_tells_the_same_events(scan, undisturbed, tmp_path):
    events = list(map(json.loads, undisturbed.splitlines()))
    scan("--out", "e.csv")
    with (tmp_path / "e.csv").open(newline="") as file:
        rows = [
            {key: value if key in ("file", "label") else float(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]
    assert rows == events
    scan("--out", "labels", "--format", "audacity")
    labels = sorted((tmp_path / "labels").rglob("*.txt"))
    assert len(labels) == FILES
    assert labels[0] == tmp_path / "labels" / f"{events[0]['file'].lstrip('/')}.txt"
    assert sum(len(path.read_text().splitlines()) for path in labels) == len(events)


@pytest.mark.parametrize("name", ["s3://b/../../../../a.flac", "s3://b/../..", "..://../a.flac", "../../a.flac"])
def test_labels_never_leave_their_folder(tmp_path, name):
    assert labels_of(tmp_path / "labels", name).resolve().is_relative_to(tmp_path / "labels")
    assert labels_of(tmp_path, name) != labels_of(tmp_path, name.replace("../", ""))


@pytest.fixture
def scan_as_nobody(loudness_model):
    """Scan `in` of a folder that anybody may reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        shutil.copy(loudness_model, folder / "model.onnx")
        (folder / "in").mkdir()
        program = [*as_nobody(), sys.executable, "-c", "from detector.cli import main; main()", "scan", "--model", "model.onnx"]

        def call(*options):
            return subprocess.run([*program, *map(str, options)], cwd=folder, capture_output=True, text=True, timeout=60)

        yield folder, call
        for path in folder.rglob("*"):
            path.chmod(0o777)


def test_what_may_not_be_read_today_is_heard_when_it_may(scan_as_nobody, bursts):
    """A file and a folder; the rest is done meanwhile, and the exit code says to try again."""
    folder, scan = scan_as_nobody
    (folder / "in" / "sub").mkdir()
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        soundfile.write(folder / "in" / name, bursts(3, (1, 2)), 8000)
    for mode in (0o000, 0o755):
        for path in (folder / "in" / "a.wav", folder / "in" / "sub"):
            path.chmod(mode)
        done = scan("in", "--out", "e.csv", "--jobs", "1")
        names = [line.split(",")[0] for line in (folder / "e.csv").read_text().splitlines()[1:]]
        if mode:
            assert (done.returncode, names) == (0, ["in/a.wav", "in/b.wav", "in/sub/c.wav"])
            assert "2 of 2 recordings" in done.stderr
        else:
            assert (done.returncode, names) == (75, ["in/b.wav"])
            lines = done.stderr.splitlines()
            assert len(lines) == 4
            assert lines[0].startswith("urbandetect: in/a.wav: cannot be read (Permission denied)")
            assert lines[1].startswith("urbandetect: in/sub: cannot be read (Permission denied)")
            assert lines[3].startswith("urbandetect: scan: 2 of 3 files could not be had")


def test_a_disk_that_fails_is_not_the_recording(loudness_model, bursts, tmp_path, monkeypatch):
    """A read error, which cannot be had from a real disk here."""
    model = Model(loudness_model, "cpu")
    (tmp_path / "a.wav").write_bytes(b"RIFF" * 100)
    content = examine(str(tmp_path / "a.wav"), model, model.description.thresholds, lambda _: None)
    assert ("is not an audio file" in content.error, content.again) == (True, False)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    disk = examine(str(tmp_path / "a.wav"), model, model.description.thresholds, lambda _: None)
    assert ("a.wav: cannot be read (Input/output error)" in disk.error, disk.again) == (True, True)


def test_what_was_there_and_is_gone_is_not_done_and_keeps_what_it_gave(tmp_path):
    """A disk that is taken out in the middle: the same names and times are there again later."""
    (tmp_path / "bad.wav").touch()
    gone, bad = (Recording(str(tmp_path / name), 9, "1") for name in ("gone.wav", "bad.wav"))
    ledger, event = Ledger(tmp_path / "ledger", {}), Found(gone.name, "loud", 1.0, 2.0, 0.9)
    outcomes = [Outcome(gone.name, (event,), 3.0, "breaks off"), Outcome(bad.name, error="is no audio")]
    failed = _into(ledger, [gone, bad], lambda _: iter(outcomes), Progress([gone, bad]))
    assert [failed[each.name].again for each in (gone, bad)] == [True, False]
    assert (ledger.done(gone), ledger.done(bad)) == (None, outcomes[1])
    assert list(ledger.events(gone.name)) == [event]
    ledger.close()


def test_a_recording_that_breaks_off_keeps_what_was_before(urbandetect, loudness_model, bursts, tmp_path):
    """The same events whoever did the work, and again from the ledger."""
    (tmp_path / "in").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / "in" / f"{name}.flac", np.tile(bursts(3, (1, 2)), 100), 8000)
    whole = (tmp_path / "in" / "a.flac").read_bytes()
    (tmp_path / "in" / "a.flac").write_bytes(whole[: len(whole) // 2])
    scan = partial(urbandetect, "scan", "--model", loudness_model, "in")
    one = scan("--jobs", "1")
    assert "a.flac: breaks off at" in one.stderr
    assert 20 < sum("a.flac" in line for line in one.stdout.splitlines()) < 80
    assert scan("--jobs", "2").stdout == one.stdout
    for _ in range(2):
        assert scan("--out", "e.jsonl").returncode == one.returncode == 64
        assert (tmp_path / "e.jsonl").read_text() == one.stdout


def test_labels_of_what_has_left_the_folder_leave_too_and_no_others(urbandetect, loudness_model, bursts, tmp_path):
    scan = partial(urbandetect, "scan", "--model", loudness_model, "in", "--out", "labels", "--format", "audacity")
    (tmp_path / "in").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / "in" / f"{name}.wav", bursts(3, (1, 2)), 8000)
    assert scan().returncode == 0
    a, _ = sorted((tmp_path / "labels").rglob("*.txt"))
    a.with_name("mine.wav.txt").write_text("mine")
    (tmp_path / "in" / "b.wav").unlink()
    assert scan().returncode == 0
    assert sorted((tmp_path / "labels").rglob("*.txt")) == [a, a.with_name("mine.wav.txt")]


def test_hidden_folders_are_not_searched(tmp_path):
    for folder in (tmp_path, tmp_path / ".Trash-1000", tmp_path / "2019" / ".snapshot" / "in"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.wav").touch()
    assert [each.name for each in recordings([str(tmp_path)])[0]] == [str(tmp_path / "a.wav")]
    assert len(recordings([str(tmp_path / ".Trash-1000")])[0]) == 1, "named itself"
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install -e '.[archive]'")
    store = fsspec.filesystem("memory")
    for name in ("/.b/a.wav", "/.b/.snapshot/a.wav"):
        store.pipe(name, b"no sound")
    assert [each.name for each in recordings(["memory://.b"])[0]] == ["memory:///.b/a.wav"]
    store.rm("/.b", recursive=True)


@pytest.mark.parametrize(
    ("code", "line", "options"),
    [
        (64, "cannot be read (File name too long)", ["a" * 300 + ".wav"]),
        (64, "--out .: is no name of its own", ["in", "--out", ".", "--format", "audacity"]),
        (75, "ftp://127.0.0.1:1/x.wav: cannot be fetched (Connection refused); is", ["ftp://127.0.0.1:1/x.wav"]),
        (75, "http://127.0.0.1:1/x.wav: cannot be fetched (Connection refused); is", ["http://127.0.0.1:1/x.wav"]),
        (64, "http://127.0.0.1:99999/x.wav: is no whole URL; for", ["http://127.0.0.1:99999/x.wav"]),
        (64, "foo://x/y: is of no known kind (Protocol not known: foo); for", ["foo://x/y"]),
        (64, "PATHS: one of them is empty; name", ["closed", ""]),
        (75, "closed/a.wav: cannot be read (Permission denied)", ["closed/a.wav"]),
    ],
    ids=["long", "dot", "refused", "web-refused", "port", "kind", "empty", "closed"],
)
def test_wrong_input_is_one_line(scan_as_nobody, bursts, code, line, options):
    folder, scan = scan_as_nobody
    if "://" in options[0]:
        pytest.importorskip("fsspec", reason="needs fsspec: pip install -e '.[archive]'")
    (folder / "closed").mkdir()
    for name in ("closed", "in"):
        soundfile.write(folder / name / "a.wav", bursts(3, (1, 2)), 8000)
    (folder / "closed").chmod(0o000)
    done = scan(*options)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert line in done.stderr


def test_parquet_holds_the_same_events(scan, undisturbed, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install -e '.[archive]'")
    assert scan("--out", "e.parquet").returncode == 64
    rows = parquet.read_table(tmp_path / "e.parquet").to_pylist()
    rounded = [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    assert rounded == list(map(json.loads, undisturbed.splitlines()))


def test_only_what_is_new_or_changed_is_heard_again(urbandetect, loudness_model, bursts, tmp_path):
    def found(*more):
        done = urbandetect("scan", "--model", loudness_model, "--out", "e.jsonl", "--jobs", "1", "in", *more)
        events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
        said = re.sub(r",.* real time", "", done.stderr.strip())
        return said, [(event["file"], event["onset_s"]) for event in events]

    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "b.wav", bursts(3, (1, 2)), 8000)
    assert found() == ("1 of 1 recordings", [("in/b.wav", 1.0)])
    assert found() == ("nothing new to hear, 1 done before", [("in/b.wav", 1.0)])
    assert found("--ray", "127.0.0.1:1") == ("nothing new to hear, 1 done before", [("in/b.wav", 1.0)]), "no cluster is asked"
    (tmp_path / "in" / "b.wav").touch()
    assert found() == ("1 of 1 recordings", [("in/b.wav", 1.0)])
    soundfile.write(tmp_path / "in" / "a.wav", bursts(3, (0.5, 2)), 8000)
    assert found() == ("1 of 1 recordings, 1 done before", [("in/a.wav", 0.5), ("in/b.wav", 1.0)])
    soundfile.write(tmp_path / "in" / "b.wav", bursts(4, (2, 3)), 8000)
    assert found() == ("1 of 1 recordings, 1 done before", [("in/a.wav", 0.5), ("in/b.wav", 2.0)])
    assert found("in/a.wav", "./in") == ("nothing new to hear, 2 done before", [("in/a.wav", 0.5), ("in/b.wav", 2.0)])


@pytest.mark.parametrize("out", ["e.csv", "e.jsonl", "labels/e.txt"])
def test_where_nothing_is_there_nothing_is_written_and_an_older_output_stays(urbandetect, loudness_model, bursts, tmp_path, out):
    scan = partial(urbandetect, "scan", "--model", loudness_model, "--out", out, "--format", "csv", "in", "also")
    done = scan()
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (64, "", [])
    assert "in: no such file" in done.stderr
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", bursts(3, (1, 2)), 8000)
    scan()
    before = (tmp_path / out).read_text()
    (tmp_path / "in").rename(tmp_path / "away")
    assert scan().returncode == 64
    assert "a.wav" in before
    assert (tmp_path / out).read_text() == before


def test_other_thresholds_or_another_model_do_not_mix_with_what_is_done(urbandetect, loudness_model, bursts, tmp_path):
    soundfile.write(tmp_path / "a.wav", bursts(3, (1, 2)), 8000)
    assert urbandetect("scan", "--model", loudness_model, "--out", "e.csv", "a.wav").returncode == 0
    before = (tmp_path / "e.csv").read_text()
    other = urbandetect("scan", "--out", "e.csv", "a.wav")
    (tmp_path / "detector.toml").write_text("[thresholds.loud]\non = 0.6")
    thresholds = urbandetect("scan", "--model", loudness_model, "--out", "e.csv", "a.wav")
    for done, what in ((other, "another model"), (thresholds, "other thresholds")):
        assert done.returncode == 78
        assert done.stderr.startswith(f"urbandetect: e.csv.ledger: was made with {what}")
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "e.csv").read_text() == before
    assert {path.name for path in tmp_path.glob("e.csv*")} == {"e.csv", "e.csv.ledger"}


def test_two_scans_do_not_share_a_ledger_and_a_file_that_is_none_is_left_alone(tmp_path):
    first = Ledger(tmp_path / "ledger", {"model": "1"})
    with pytest.raises(TryAgainError, match="in use by another scan"):
        Ledger(tmp_path / "ledger", {"model": "1"})
    first.close()
    Ledger(tmp_path / "ledger", {"model": "1"}).close()
    (tmp_path / "other").write_text("my notes " * 1000)
    with pytest.raises(ConfigError, match="is no ledger"):
        Ledger(tmp_path / "other", {"model": "1"})
    assert (tmp_path / "other").read_text() == "my notes " * 1000


def test_a_name_that_is_no_utf_8_is_in_every_file(urbandetect, loudness_model, bursts, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e '.[archive]'")
    soundfile.write(tmp_path / "a.wav", bursts(3, (1, 2)), 8000)
    (tmp_path / "in").mkdir()
    (tmp_path / "a.wav").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.wav"))
    for out in ("e.jsonl", "e.parquet"):
        assert urbandetect("scan", "--model", loudness_model, "--out", out, "in").returncode == 0
        assert b"caf\\udce9.wav" in (tmp_path / out).read_bytes().replace(b"\\\\", b"\\")


def test_two_hours_take_the_memory_of_a_minute(loudness_model, tmp_path):
    """Of peak resident memory: decoded, two hours at 8 kHz are 230 MB. Ten hours: bench/scan.py."""
    program = "import resource, sys; from detector.cli import cli; cli.main(sys.argv[1:], standalone_mode=False)"
    program += "; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    peaks = []
    for minutes in (1, 120):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", 8000, 1) as file:
            for _ in range(minutes):
                file.write(np.zeros(480_000, np.int16))
        command = [sys.executable, "-c", program, "scan", "--model", str(loudness_model), str(path)]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 10


def test_a_bucket_of_an_s3_server_is_searched(start, loudness_model, bursts, tmp_path):
    """A real server of the protocol (moto) on this computer, asked through the program with an ordinary environment."""
    boto3 = pytest.importorskip("boto3", reason="needs an S3 server and its client: pip install 's3fs' 'moto[server]'")
    pytest.importorskip("s3fs", reason="needs s3fs: pip install s3fs")
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(sys.executable, "-m", "moto.server", "-p", port)
    server.wait_for_error("Running on", within_s=30)
    address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    secret = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "secret"}
    names = {key.lower(): value for key, value in secret.items()}
    client = boto3.client("s3", endpoint_url=address["AWS_ENDPOINT_URL"], region_name="us-east-1", **names)
    client.create_bucket(Bucket="street")
    soundfile.write(tmp_path / "a.flac", bursts(3, (1, 2)), 8000)
    for key in ("2010/b.flac", "2010/c.flac", "notes.txt"):
        client.upload_file(str(tmp_path / "a.flac"), "street", key)
    scan = [
        sys.executable,
        "-c",
        "from detector.cli import main; main()",
        "scan",
        "--model",
        loudness_model,
        "s3://street",
        "--out",
    ]
    program = start(*scan, "e.csv", "--jobs", "2", env=address | secret)
    assert program.end(40) == 0, program.errors.read_text()
    assert [line.split(",")[:3] for line in (tmp_path / "e.csv").read_text().splitlines()[1:]] == [
        [f"s3://street/2010/{name}.flac", "loud", "1.0"] for name in "bc"
    ]
    assert "2 of 2 recordings" in program.errors.read_text()
    again = start(*scan, "e.csv", env=address | secret)
    assert again.end(40) == 0
    assert "nothing new" in again.errors.read_text()
    server.kill()
    away = start(*scan, "away.csv", env=address | secret)
    assert away.end(60) == 75, away.errors.read_text()


def test_of_a_web_server_files_and_folders_are_searched(start, urbandetect, loudness_model, bursts, tmp_path):
    pytest.importorskip("aiohttp", reason="needs fsspec and aiohttp: pip install -e '.[archive]'")
    (tmp_path / "2010").mkdir()
    for name in ("a b.wav", "2010/c.wav"):
        soundfile.write(tmp_path / name, bursts(3, (1, 2)), 8000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(sys.executable, "-u", "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", tmp_path)
    server.wait_for(lambda line: line.startswith("Serving HTTP"))
    for given, heard in (("a%20b.wav", "a%20b.wav"), ("2010/", "2010/c.wav")):
        done = urbandetect("scan", "--model", loudness_model, f"http://127.0.0.1:{port}/{given}")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["file"] == f"http://127.0.0.1:{port}/{heard}"


def test_without_the_package_for_a_url_one_line_says_how_to_install_it(urbandetect, tmp_path):
    pytest.importorskip("fsspec", reason="needs fsspec: pip install -e '.[archive]'")
    (tmp_path / "aiohttp.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = urbandetect("scan", "http://127.0.0.1:1/a.wav", env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1), done.stderr
    assert "aiohttp" in done.stderr
    assert "-m pip install 'urbandetect[archive]'" in done.stderr


def test_urls_are_recordings_too(loudness_model, bursts, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install -e '.[archive]'")
    soundfile.write(tmp_path / "a.wav", bursts(3, (1, 2)), 8000)
    store, model = fsspec.filesystem("memory"), Model(loudness_model, "cpu")
    store.pipe("/street/2010/a.wav", (tmp_path / "a.wav").read_bytes())
    store.pipe("/street/notes.txt", b"no sound")
    found, others = recordings(["memory://street", "memory://street/2010/a.wav"])
    assert (len(found), others) == (1, 1)
    outcome = examine(found[0].name, model, model.description.thresholds, lambda _: None)
    assert [(event.file, event.onset_s) for event in outcome.found] == [(found[0].name, 1.0)]
    store.rm("/street", recursive=True)
    gone = examine(found[0].name, model, model.description.thresholds, lambda _: None)
    assert gone.again
    assert "cannot be fetched (it is not there); is" in gone.error


def test_ctrl_c_stops_every_process_at_once_and_loses_nothing(start, archive, loudness_model, undisturbed, tmp_path):
    command = ["urbandetect", "scan", "--model", loudness_model, "--jobs", "2", "--out", "e.jsonl", archive]
    program = start(*command)
    wait_for(lambda: size(tmp_path / "e.jsonl.ledger-wal") > 20_000 and workers(program.process.pid))
    those = children(program.process.pid)
    for pid in (program.process.pid, *those):
        os.kill(pid, signal.SIGINT)
    assert program.end() == 130
    assert program.errors.read_text().splitlines()[-1] == "urbandetect: stopped"
    wait_for(lambda: not any(map(alive, those)))
    assert start(*command).end() == 64
    assert (tmp_path / "e.jsonl").read_text() == undisturbed
