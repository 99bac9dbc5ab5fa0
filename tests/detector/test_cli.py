from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import ConfigError, install

IMPOSSIBLE = """
[convs_module]
[conv2d]
out_channels=8
kernel_size=99
[recur_module]
[lstm]
hidden_size=8
[dense_module]
[linear]
out_features=10
"""


@pytest.fixture
def street(tmp_path, bursts):
    """Three seconds, loud from 0.5 to 1 and from 2 to 2.2 s, in a file whose name needs quoting."""
    soundfile.write(tmp_path / 'a, "street".wav', bursts(3.0, (0.5, 1.0), (2.0, 2.2)), 8000)
    return tmp_path / 'a, "street".wav'


@pytest.mark.parametrize(
    ("code", "named", "command"),
    [
        (64, "missing.wav: no such file", "scan missing.wav"),
        (64, "empty.wav: is empty; is it", "scan empty.wav"),
        (64, "missing.wav: no such file; is the name right?", "classify missing.wav"),
        (64, "empty.wav: is empty; is it", "classify empty.wav"),
        (64, "noise.mp3: cannot be decoded; is it", "classify noise.mp3"),
        (64, "noise.mp3: is not an audio file", "scan noise.mp3"),
        (64, "--at: stands instead of an event's id; give only one of them", "explain x --at 2026-11-25T06:15:03Z"),
        (64, "text.wav: is not an audio file", "scan text.wav"),
        (64, "text.raw: is not an audio file", "scan text.raw"),
        (64, ".: is a folder", "run --input ."),
        (64, "--loud", "scan --loud x.wav"),
        (64, "Missing argument", "scan"),
        (64, "lisen", "lisen"),
        (64, "'--fold': '11' is not one of '1', '2'", "train --fold 11 --data missing"),
        (64, "--mqtt", "run --mqtt :x"),
        (64, "exclude each other", "run --device hw:1 --input x.wav"),
        (64, "--speed", "run --speed 3"),
        (64, "missing.wav: no such file", "run --input missing.wav"),
        (64, "standard input: is empty", "run --input -"),
        (64, "--input", "run --input="),
        (78, "unknown.toml: unknown key nod", "run --config unknown.toml"),
        (78, "type.toml: mqtt.port must be a whole number", "scan --config type.toml text.wav"),
        (78, "label.toml: thresholds.sirene", "scan --config label.toml text.wav"),
        (78, "missing.toml: cannot be read", "run --config missing.toml"),
        (78, ".: cannot be read (it is a folder, a pipe or a device); is the name right", "run --config ."),
        (78, "secret.toml: mqtt.password_file: secret cannot be read", "run --config secret.toml --input text.wav"),
        (78, "token.toml: web.token_file: secret cannot be read", "run --config token.toml --input text.wav"),
        (
            78,
            "inputs/rel.toml: source 'rel': input: rel.ogg: no such file; is the name right?",
            "run --config folder.toml",
        ),
        (78, "input.toml: source 'mic1': input: text.wav: is not an audio file", "run --config input.toml"),
        (64, "urbandetect: --input: rel.ogg: no such file; is", "run --config input.toml --input rel.ogg"),
        (78, "device.toml: source 'mic1': device = 'hw:x'", "run --config device.toml"),
        (64, "--mqtt: mqtt.port = 99999", "run --mqtt host:99999"),
        (64, "--mqtt: '::::' is not HOST or HOST:PORT", "run --mqtt ::::"),
        (64, "--mqtt: mqtt.host = 'a..b' is not a host name", "run --mqtt a..b"),
        (64, "--web: web.listen = 'bogus' is not HOST:PORT", "run --web bogus"),
        (64, "--web: web.listen = '127.0.0.1:99999' names no port that there is", "run --web 127.0.0.1:99999"),
        (64, "--web: 0.0.0.0:0 is reached from other computers", "run --web 0.0.0.0:0 --input text.wav"),
        (64, "--input: source 'mic1': input = 'ftp://...' is no stream", "run --input ftp://x"),
        (64, "--device: source 'mic1': device = 'hw:x': is not hw:N", "run --device hw:x"),
        (64, "--device: 'usb:x': is not usb:VID:PID", "calibrate --level 94 --device usb:x"),
        (64, "--speed: max is for recordings, and source 'mic1' is heard live", "run --speed max"),
        (64, "--speed: max is for recordings", "run --speed max --device hw:1"),
        (64, "--speed: max is for recordings", "run --speed max --input http://127.0.0.1:1/x"),
        (78, "damaged.onnx: is not a readable ONNX model", "scan --model damaged.onnx text.wav"),
        (78, "damaged.onnx: is not a readable ONNX model", "model info damaged.onnx"),
        (78, "missing.onnx: cannot be read", "demo --model missing.onnx"),
        (
            78,
            "missing.onnx: cannot be read (No such file or directory); is the name of the model right?",
            "model info missing.onnx",
        ),
        (
            78,
            "model.toml: model.path: missing.onnx: cannot be read (No such file or directory); is the name of the model right?",
            "scan --config model.toml x",
        ),
        (78, "model.toml: model.path: missing.onnx: cannot be read", "run --config model.toml --input text.wav"),
        (
            78,
            "urbandetect: other.onnx: cannot be read (No such file or directory); is the name of the model right?",
            "scan --config model.toml --model other.onnx x",
        ),
        (
            78,
            "missing.onnx: cannot be read (No such file or directory); is the name of the model right?",
            "classify --model missing.onnx x",
        ),
        (78, "layer.cfg", "model info layer.cfg"),
        (78, "impossible.cfg", "model info impossible.cfg"),
        (78, "missing.cfg", "model info missing.cfg"),
    ],
)
def test_what_cannot_work_is_one_line_that_names_it_and_its_exit_code(urbandetect, tmp_path, code, named, command):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "text.raw").write_text("no sound")
    (tmp_path / "unknown.toml").write_text("nod = 'x'")
    (tmp_path / "type.toml").write_text("[mqtt]\nport = '1883'")
    (tmp_path / "label.toml").write_text("[thresholds.sirene]\non = 0.5")
    (tmp_path / "model.toml").write_text("[model]\npath = 'missing.onnx'")
    (tmp_path / "input.toml").write_text("[[source]]\ninput = 'text.wav'")
    (tmp_path / "folder.toml").write_text("source_folder = 'inputs'")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/rel.toml").write_text("input = 'rel.ogg'")
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(1).bytes(30_000))  # its decoder complains by itself
    (tmp_path / "secret.toml").write_text("[mqtt]\nusername = 'me'\nhost = '127.0.0.1'\npassword_file = 'secret'")
    (tmp_path / "token.toml").write_text("[web]\nlisten = '127.0.0.1:0'\ntoken_file = 'secret'")
    (tmp_path / "device.toml").write_text("[[source]]\ndevice = 'hw:x'")
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" * 30)
    (tmp_path / "layer.cfg").write_text(IMPOSSIBLE.replace("lstm", "transformer"))
    (tmp_path / "impossible.cfg").write_text(IMPOSSIBLE)
    done = urbandetect(*command.split(), stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("urbandetect: ")
    assert named in line


def test_settings_that_this_user_may_not_read_are_wrong_settings_as_are_those_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "detector.toml").touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(Path, "open", lambda *_: os.open("/nonexistent/detector.toml", os.O_RDONLY))
    error = CliRunner().invoke(cli, ["scan", "--config", str(tmp_path / "detector.toml"), "x.wav"]).exception
    assert isinstance(error, ConfigError)
    assert "detector.toml: cannot be read" in f"{error}"


def test_help_and_version_and_no_command(urbandetect):
    assert urbandetect("--version").stdout.startswith("urbandetect ")
    shown = urbandetect("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(command in shown.stdout for command in ("run", "scan", "demo", "devices", "train", "Exit codes"))
    bare = urbandetect()
    assert (bare.returncode, bare.stdout) == (64, "")
    assert bare.stderr.startswith("Usage:")


def test_scan_as_json_lines(urbandetect, street, loudness_model):
    done = urbandetect("scan", "--model", loudness_model, street)
    assert done.stderr == ""
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"file": str(street), "label": "loud", "onset_s": 0.5, "offset_s": 1.0, "score": pytest.approx(0.9, abs=0.001)},
        {"file": str(street), "label": "loud", "onset_s": 2.0, "offset_s": 2.2, "score": pytest.approx(0.9, abs=0.001)},
    ]


def test_scan_as_csv(urbandetect, street, loudness_model):
    done = urbandetect("scan", "--model", loudness_model, "--format", "csv", street)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["file"], row["label"], float(row["onset_s"]), float(row["offset_s"])) for row in rows] == [
        (str(street), "loud", 0.5, 1.0),
        (str(street), "loud", 2.0, 2.2),
    ]


def test_scan_as_audacity_labels(urbandetect, street, loudness_model):
    done = urbandetect("scan", "--model", loudness_model, "--format", "audacity", street)
    assert done.stdout == "0.500000\t1.000000\tloud 0.90\n2.000000\t2.200000\tloud 0.90\n"


def test_scan_goes_on_after_a_file_that_cannot_be_read(urbandetect, street, loudness_model):
    done = urbandetect("scan", "--model", loudness_model, "missing.wav", street, "missing2.wav")
    assert done.returncode == 64
    assert len(done.stdout.splitlines()) == 2
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["missing.wav", "missing2.wav", "scan"]


def test_thresholds_of_the_settings_decide_what_is_an_event(urbandetect, street, loudness_model, tmp_path):
    (tmp_path / "detector.toml").write_text("[thresholds.loud]\nmin_on_s = 0.4")
    assert len(urbandetect("scan", "--model", loudness_model, street).stdout.splitlines()) == 1


def test_a_file_name_that_is_no_utf_8_can_be_scanned(urbandetect, street, loudness_model, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    street.rename(tmp_path / name)
    done = urbandetect("scan", "--model", loudness_model, name, text=False, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"onset_s": 0.5' in done.stdout


def test_a_reader_that_goes_away_is_no_error(loudness_model, tmp_path, bursts):
    soundfile.write(tmp_path / "many.wav", np.tile(bursts(0.6, (0.0, 0.2)), 2000), 8000)
    program = [Path(sys.executable).with_name("urbandetect"), "scan", "--model", loudness_model, tmp_path / "many.wav"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as scan:
        scan.stdout.readline()
        scan.stdout.close()
        assert (scan.stderr.read(), scan.wait(20)) == (b"", 0)


def test_model_info_of_an_architecture(urbandetect):
    from detector.model import shipped

    facts = json.loads(urbandetect("model", "info", shipped("reference.cfg"), "--json").stdout)
    assert (facts["parameters"], facts["receptive_frames"], facts["stride_frames"], facts["streams"]) == (139_786, 80, 48, False)
    assert "139,786" in urbandetect("model", "info", shipped("reference.cfg")).stdout


def test_model_info_of_a_model(urbandetect, shipped_model):
    facts = json.loads(urbandetect("model", "info", shipped_model, "--json").stdout)
    assert {"name", "version", "sha256", "labels", "hop", "context", "sample_rate", "thresholds", "parameters"} <= facts.keys()
    shown = urbandetect("model", "info", shipped_model).stdout
    assert facts["sha256"] in shown
    assert all(label in shown for label in facts["labels"])


def test_the_demo_shows_what_is_there(urbandetect):
    shown = urbandetect("demo").stdout
    assert shown.index("heard") < shown.index("there")
    assert "engine_idling      16.30 s to  27.70 s" in shown[shown.index("there") :]


@pytest.mark.parametrize(
    "command", ["--help", "scan {street}", "run --input {street} --speed max", "model info {model}", "demo", "devices"]
)
def test_nothing_but_training_imports_torch(tmp_path, command, shipped_model, bursts):
    """A module of that name that cannot be imported stands before the real one."""
    (tmp_path / "torch.py").write_text("raise ImportError('the daemon must not import torch')")
    soundfile.write(tmp_path / "x.wav", bursts(0.5), 8000)
    arguments = command.format(street=tmp_path / "x.wav", model=shipped_model).split()
    program = [sys.executable, Path(sys.executable).with_name("urbandetect"), *arguments]
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True)
    if "PortAudio: is not installed" in done.stderr:
        pytest.skip("needs PortAudio: apt install libportaudio2")
    assert done.returncode == 0 or "devices: this computer has no input device" in done.stderr, done.stderr


@pytest.mark.parametrize("journal", [True, False])
def test_the_journal_is_told_how_grave_a_line_is_and_a_terminal_is_not(urbandetect, tmp_path, loudness_model, bursts, journal):
    soundfile.write(tmp_path / "short.wav", bursts(0.5, (0.1, 0.3)), 8000)
    command = ("run", "--model", loudness_model, "--input", "short.wav", "--speed", "max", "--mqtt", "127.0.0.1:1")
    with (tmp_path / "stderr").open("w+") as errors:
        facts = os.fstat(errors.fileno())
        stream = f"{facts.st_dev}:{facts.st_ino + (not journal)}"
        env = os.environ | {"JOURNAL_STREAM": stream, "XDG_STATE_HOME": str(tmp_path)}
        assert urbandetect(*command, env=env, capture_output=False, stderr=errors).returncode == 75
        errors.seek(0)
        said = errors.read()
    assert ("<4>mqtt 127.0.0.1:1: no connection" in said, "\nwarning" in f"\n{said}") == (journal, not journal)


def test_the_shell_completes_commands(urbandetect):
    words = {"COMP_WORDS": "urbandetect ru", "COMP_CWORD": "1", "_URBANDETECT_COMPLETE": "bash_complete"}
    assert urbandetect(env=os.environ | words).stdout == "plain,run\n"
    assert "complete" in urbandetect(env=os.environ | {"_URBANDETECT_COMPLETE": "bash_source"}).stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line_and_try_again(loudness_model, bursts, tmp_path):
    soundfile.write(tmp_path / "a.wav", bursts(1.0, (0.2, 0.5)), 8000)
    program = Path(sys.executable).with_name("urbandetect")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [program, "scan", "--model", loudness_model, tmp_path / "a.wav"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (75, "urbandetect: the disk is full; make room and start again\n")


@pytest.mark.skipif(find_spec("pip") is None, reason="needs pip")
def test_the_command_that_installs_an_extra_works_in_the_python_that_lacks_it_and_asks_no_index_for_urbandetect():
    command = shlex.split(install("archive").removeprefix("install it: "))
    done = subprocess.run([*command, "--dry-run", "--no-index", "--no-deps"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "already satisfied: urbandetect[archive]" in done.stdout
