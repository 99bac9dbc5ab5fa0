"""Clips of a real daemon: what events and health say of them, what is refused at start, and what they cost when they are off."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import soundfile


@pytest.fixture
def settings(tmp_path):
    def write(clips, text=""):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n[clips]\n{clips}\n{text}')

    return write


def until(condition, within_s=15.0):
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)
    return found


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def health(witness):
    """What `health` said last of clips."""
    return json.loads([line for line in witness.lines if "/health " in line][-1].split(" ", 2)[2])["clips"]


def test_an_event_says_its_clip_from_the_start_and_health_how_many_there_are(daemon, broker, settings, bursts, events, tmp_path):
    settings("folder = 'clips'\nafter_s = 0.5", f"[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}")
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.say(bursts(1.0))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    start, end = events([line for line in witness.lines if "/mic1/event " in line])
    assert start["clip"] == end["clip"]
    folder = tmp_path / "urbandetect" / "clips"  # of the state folder
    assert f"info clips: {folder}\n" in run.errors.read_text()
    until(lambda: folder.exists() and files(folder) == [end["clip"]])
    assert soundfile.info(folder / end["clip"]).frames == 0.5 * 8000 + 4000
    run.say(bursts(1.0, (0.2, 1.0)))
    witness.wait_for(lambda line: '"phase":"start"' in line, after=len(witness.lines))
    run.send(signal.SIGTERM)  # which ends the event, and its clip
    assert run.process.wait(10) == 0
    until(lambda: health(witness)["kept"] == 1)
    assert health(witness) == {"kept": 1, "bytes": (folder / end["clip"]).stat().st_size, "dropped": 0, "trouble": ""}
    first, last = files(folder)
    assert first == end["clip"]
    with soundfile.SoundFile(folder / last) as file:
        assert (file.frames, json.loads(file.comment)["short"]) == (8000 * 2.8, "end")


def test_a_full_disk_is_said_once_detection_goes_on_and_the_clip_is_written_when_there_is_room(
    daemon, settings, bursts, small_disk, events
):
    settings(f"folder = '{small_disk}/clips'\nafter_s = 0.5")
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    run = daemon("--input", "-")
    run.wait_for_error("hearing", lambda: run.say(bursts(0.5)))
    with contextlib.suppress(OSError):  # no space left
        while os.write(filler, bytes(1000)):
            pass
    os.close(filler)
    for _ in range(3):
        run.say(bursts(1.5, (0.2, 0.5)))
    run.wait_for_error("cannot be written (No space left on device); make room, or set another clips.folder; detection goes on")
    until(lambda: len(events(run.lines)) == 6)
    (small_disk / "filler").unlink()
    run.wait_for_error("they are written again")
    clips = sorted(event["clip"] for event in events(run.lines) if event["phase"] == "end")
    until(lambda: files(small_disk / "clips") == clips)
    assert len(clips) == 3
    assert run.errors.read_text().count("cannot be written") == 1


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


REFUSED = [
    ("folder = 'clips'\nlabels = ['laud']", "detector.toml: clips.labels: the model has no label 'laud'; it has loud, so_far"),
    ("folder = 'clips'\nmax_s = 3.0", "clips.before_s = 2, clips.after_s = 2, clips.max_s = 3; before_s and after_s from 0"),
    ("folder = 'clips'\nmax_mb = 0", "clips.max_mb must be above 0"),
    ("folder = 'clips'\nrecipient = 'AGE-SECRET-KEY-1QQQ'", "clips.recipient is no age public key; age-keygen prints one: age1..."),
]


@pytest.mark.parametrize(("clips", "said"), REFUSED, ids=["label", "max_s", "max_mb", "private key"])
def test_what_cannot_work_is_refused_at_start_in_one_line_that_shows_no_private_key(daemon, settings, clips, said):
    settings(clips)
    run = daemon("--input", "-")
    assert run.end() == 78
    assert said in run.errors.read_text()
    assert run.errors.read_text().count("\n") == 1
    assert "QQQ" not in run.errors.read_text()


def test_a_source_whose_name_leads_out_of_the_folder_is_refused(daemon, settings):
    settings("folder = 'clips'", "[[source]]\nname = '..'\ninput = '-'")
    run = daemon()
    assert run.end() == 78
    assert "source '..' cannot be the name of a folder of clips" in run.errors.read_text()


def test_a_missing_package_and_a_folder_in_use_are_said(daemon, settings, tmp_path):
    settings("folder = 'clips'\nrecipient = 'age10fzyuy66f9msyjzzcrmukya4tnc8n5z20wxhlvtyx0v5mv2dxp9quyju49'")
    (tmp_path / "pyrage.py").write_text("raise ModuleNotFoundError('none', name='pyrage')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = daemon("--input", "-", env={"PYTHONPATH": path})
    assert run.end() == 78
    assert "detector.toml: clips.recipient: needs a package that is not there (pyrage); install it: " in run.errors.read_text()
    settings("folder = 'clips'")
    first = daemon("--input", "-")
    until((tmp_path / "urbandetect" / "clips").exists)
    time.sleep(0.2)
    second = daemon("--input", "-")
    assert second.end() == 75
    assert "another urbandetect keeps its clips there; stop that one" in second.errors.read_text()
    assert first.process.poll() is None


def test_by_default_no_sound_is_kept_nothing_of_it_is_loaded_and_events_have_no_such_key(bursts, loudness_model, tmp_path):
    soundfile.write(tmp_path / "short.wav", bursts(1.0, (0.2, 0.5)), 8000)
    command = [sys.executable, "-X", "importtime", "-c", "from detector.cli import main; main()", "run"]
    options = ["--model", str(loudness_model), "--input", "short.wav", "--speed", "max"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert '"phase":"end"' in done.stdout
    assert '"clip"' not in done.stdout
    assert "detector.daemon" in done.stderr
    assert not re.search(r"detector\.clips|pyrage", done.stderr)


def test_the_doctor_looks_at_the_folder_and_the_room_for_it(urbandetect, settings, small_disk):
    def said():
        done = urbandetect("doctor", "--seconds", 0.5, "--json")
        return next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "clips")

    settings("")
    assert (said()["state"], said()["what"]) == ("skip", "no clips.folder is set: no sound is kept")
    settings(f"folder = '{small_disk}/clips'\nmax_mb = 5.0")
    assert said()["state"] == "fail"
    assert said()["what"] == f"{small_disk}/clips: 0 of 5 MB; 0 MB free"
    settings(f"folder = '{small_disk}/clips'\nmax_mb = 0.2\nrecipient = 'age1wrong'")
    assert "clips.recipient: is no age public key" in said()["what"]
    (small_disk / "file").touch()
    settings(f"folder = '{small_disk}/file/clips'")
    assert said()["state"] == "fail"
    assert said()["what"].endswith(f"/clips: cannot be made: {small_disk}/file is no folder")
