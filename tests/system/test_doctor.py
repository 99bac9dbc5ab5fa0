"""`urbandetect doctor` names the cause: on PortAudio, mosquitto and TLS as they are, each set-up broken in one place."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

trustme = pytest.importorskip("trustme", reason="needs trustme: pip install -e '.[test]'")

SECRET = "Pa55w0rd-of-the-street"
NAMES = [
    *("settings", "login", "portaudio", "mic1 device", "mic1 opens", "mic1 samples", "mic1 level"),
    *("model", "thresholds", "provider", "speed", "outbox", "disk"),
    *("broker name", "broker tcp", "broker tls", "broker login", "broker publish"),
    *("clips", "score log", "web", "clock", "service"),
]
THIS_COMPUTERS = ("clock", "service")
"""What a test cannot set up."""


@pytest.fixture
def settings(tmp_path, broker, loudness_model):
    """Settings with a broker, and more keys of [mqtt]; a model."""

    def write(mqtt="", model=loudness_model, first=""):
        (tmp_path / "password").write_text(f"{SECRET}\n")
        (tmp_path / "detector.toml").write_text(
            f'node = "street"\n{first}\n[model]\npath = "{model}"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n{mqtt}\n'
        )

    return write


@pytest.fixture
def noisy(microphone):
    """A microphone that hears a quiet street."""
    microphone.hears(np.random.default_rng(0).normal(0, 0.01, 48000).astype(np.float32))
    return microphone


@pytest.fixture
def examine(urbandetect, microphone, tmp_path):
    """The doctor's checks by name, as JSON tells them; its exit code is held to them, and no output to have a secret in it."""

    def run(*options, env=None, seconds=0.5):
        env = os.environ | microphone.env | {"XDG_STATE_HOME": str(tmp_path)} | (env or {})
        done = urbandetect("doctor", "--seconds", seconds, "--json", *options, env=env)
        assert SECRET not in done.stdout + done.stderr
        (line,) = done.stdout.splitlines()
        said = json.loads(line)
        checks = {check["name"]: check for check in said["checks"]}
        wrong = [name for name, check in checks.items() if check["state"] == "fail"]
        assert (done.returncode, said["ok"]) == ((78, False) if wrong else (0, True)), done.stderr
        assert done.stderr == (
            f"urbandetect: doctor: {len(wrong)} of {len(checks)} checks fail: {', '.join(wrong)}\n" if wrong else ""
        )
        return checks

    return run


def answer_as_the_web(listener):
    """Whoever says something, until nobody has come for so long."""
    listener.settimeout(3)
    with listener, contextlib.suppress(OSError):
        while True:
            with listener.accept()[0] as caller, contextlib.suppress(OSError):
                if caller.recv(100):
                    caller.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>no</html>")


def wrong(checks):
    return [name for name, check in checks.items() if check["state"] == "fail"]


def test_a_healthy_set_up_is_all_ok_and_nobody_is_disturbed(examine, settings, broker, noisy):
    broker.start("me", SECRET)
    settings("username = 'me'\npassword_file = 'password'")
    witness = broker.witness("-u", "me", "-P", SECRET)
    checks = examine()
    assert list(checks) == NAMES
    assert all(check.keys() == {"name", "state", "what", "fix"} for check in checks.values())
    states = {name: check["state"] for name, check in checks.items() if name not in THIS_COMPUTERS}
    assert [states.pop(name) for name in ("broker tls", "clips", "score log", "web")] == ["skip"] * 4
    assert set(states.values()) == {"ok"}
    assert checks["mic1 device"]["what"] == "default is 0 Street USB Mic: Audio (hw:1,0)"
    assert checks["mic1 opens"]["what"] == "at 48000 Hz"
    assert checks["mic1 level"]["what"] == "-37.0 dBFS"
    assert checks["broker login"]["what"] == "let in as me by MQTT 5"
    witness.wait_for(lambda line: line == "0 urbandetect/street/doctor hello")
    assert [line for line in witness.lines if "$SYS" not in line] == ["0 urbandetect/street/doctor hello"]


def test_the_names_of_the_checks_are_the_same_however_much_is_wrong(examine, settings, microphone):
    microphone.plug()
    settings(model="no.onnx")
    assert list(examine()) == NAMES


def test_people_read_what_was_found_and_below_it_what_to_do(urbandetect, settings, broker, microphone):
    microphone.plug()
    broker.start("me", "another")
    settings("username = 'me'\npassword_file = 'password'")
    done = urbandetect("doctor", env=os.environ | microphone.env)
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  mic1 device       microphone default: "))
    assert lines[at + 1].startswith("                        -> plug one in")
    assert done.returncode == 78
    assert SECRET not in done.stdout + done.stderr


def test_no_microphone(examine, settings, broker, microphone):
    broker.start()
    settings()
    microphone.plug()
    checks = examine()
    assert wrong(checks) == ["mic1 device"]
    assert "no input device that can be opened" in checks["mic1 device"]["what"]
    assert checks["mic1 device"]["fix"].startswith("plug one in")


def test_a_muted_microphone(examine, settings, broker, noisy):
    broker.start()
    settings()
    noisy.fault("silence")
    checks = examine()
    assert wrong(checks) == ["mic1 level"]
    assert checks["mic1 level"]["what"] == "digital silence: every sample is 0"
    assert "muted or dead" in checks["mic1 level"]["fix"]


def test_a_wrong_password(examine, settings, broker, noisy):
    broker.start("me", "another")
    settings("username = 'me'\npassword_file = 'password'")
    checks = examine()
    assert wrong(checks) == ["broker login"]
    assert checks["broker login"]["what"].startswith("user me is refused: the user name or password is wrong")
    assert checks["broker login"]["fix"] == "check both, or the broker's users"


def test_a_model_of_another_schema(examine, settings, broker, noisy, loudness_model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    model = onnx.load(loudness_model)
    description = json.loads(model.metadata_props[0].value) | {"schema": 2}
    onnx.helper.set_model_props(model, {"urbandetect": json.dumps(description)})
    onnx.save(model, tmp_path / "next.onnx")
    broker.start()
    settings(model="next.onnx")
    checks = examine()
    assert wrong(checks) == ["model"]
    assert checks["model"]["what"] == "next.onnx: has schema 2, this version reads 1"
    assert checks["model"]["fix"] == "update urbandetect or the model"


@pytest.mark.parametrize(
    ("what", "check", "said", "fix"),
    [
        ("an untrusted authority", "broker tls", "the broker's certificate is refused: ", "set mqtt.ca_file"),
        ("an expired certificate", "broker tls", "certificate has expired", "is this computer's clock right?"),
        ("another host's", "broker tls", "IP address mismatch", "set mqtt.host to a name that is in the certificate"),
        ("no certificate of ours", "broker tls", "the broker wants a certificate of our own", "set mqtt.cert_file"),
        ("no TLS there", "broker tls", "no TLS is spoken on this port", "set mqtt.port"),
        ("no TLS here", "broker login", "the broker speaks TLS on this port and mqtt.tls is off", "set mqtt.tls = true"),
        ("no ca file", "login", "mqtt.ca_file: no.pem holds no certificate to trust", "check the file"),
        ("nothing", "", "", ""),
    ],
)
def test_tls_that_does_not_fit(settings, broker, tmp_path, what, check, said, fix):
    from detector.config import load_settings
    from detector.doctor import broker as doctor

    authority, past = trustme.CA(), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    by = trustme.CA() if what == "an untrusted authority" else authority
    expired = {"not_before": past, "not_after": past + datetime.timedelta(days=1)} if what == "an expired certificate" else {}
    certificate = by.issue_cert("127.0.0.2" if what == "another host's" else "127.0.0.1", **expired)
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "broker.pem")
    config = [f"{key} {tmp_path / 'broker.pem'}" for key in ("certfile", "keyfile")] + [f"cafile {tmp_path / 'ca.pem'}"]
    config += ["require_certificate true"] if what == "no certificate of ours" else []
    broker.start("", "", *(config if what != "no TLS there" else []))
    file = "no.pem" if what == "no ca file" else tmp_path / "ca.pem"
    settings("" if what == "no TLS here" else f"tls = true\nca_file = '{file}'")
    found = load_settings(tmp_path / "detector.toml")[0]
    if check == "login":
        from detector.doctor.examine import _login

        checks = {"login": _login(found)}
    else:
        checks = {one.name: one for one in doctor.examine(found.mqtt, "street")}
        assert list(checks) == list(doctor.NAMES)
    failing = [name for name, one in checks.items() if one.state == "fail"]
    assert failing == ([check] if check else [])
    if check:
        assert said in checks[check].what
        assert checks[check].fix.startswith(fix)
    else:
        assert checks["broker tls"].what.startswith("TLSv1.3, certificate of ")
        assert checks["broker tls"].what.endswith(" days left")


@pytest.mark.parametrize("what", ["no name", "nobody", "silence", "no MQTT", "no MQTT 5", "acl"])
def test_each_step_to_the_broker_has_a_cause_of_its_own(broker, wire, tmp_path, monkeypatch, what):
    from detector.config import MqttSettings
    from detector.doctor import broker as doctor

    mqtt = MqttSettings("127.0.0.1", broker.port)
    if what == "no name":
        mqtt = MqttSettings("no-such-host.invalid", 1883)
    elif what == "silence":
        broker.start()
        line = wire(broker.port)
        line.lets = lambda way, packet: "drop"
        mqtt = MqttSettings("127.0.0.1", line.port)
        monkeypatch.setattr(doctor, "ANSWER_S", 1.0)
    elif what == "no MQTT":
        listener = socket.create_server(("127.0.0.1", broker.port))
        threading.Thread(target=answer_as_the_web, args=(listener,), daemon=True).start()
    elif what == "no MQTT 5":
        broker.start()
        line = wire(broker.port)
        line.lets = lambda way, packet: "old" if packet[0] >> 4 == line.CONNECT and b"MQTT\x05" in packet else "pass"
        mqtt = MqttSettings("127.0.0.1", line.port)
    elif what == "acl":
        (tmp_path / "acl").write_text("topic read #\n")
        broker.start("", "", f"acl_file {tmp_path / 'acl'}")
    checks = list(doctor.examine(mqtt, "street"))
    failing = [(check.name, check.what) for check in checks if check.state == "fail"]
    expected = {
        "no name": [("broker name", "no-such-host.invalid: not found by the name server")],
        "nobody": [("broker tcp", f"127.0.0.1 port {broker.port}: nothing listens there")],
        "silence": [("broker login", "no answer in 1 s")],
        "no MQTT": [("broker login", "broker closes the connection without a word")],
        "no MQTT 5": [],
        "acl": [("broker publish", "access list does not let clients without a user name write urbandetect/street/doctor")],
    }[what]
    assert [name for name, _ in failing] == [name for name, _ in expected]
    assert all(part in said for (_, said), (_, part) in zip(failing, expected, strict=True))
    assert all(check.fix for check in checks if check.state == "fail")
    if what == "no MQTT 5":
        assert "by MQTT 3.1.1" in checks[3].what
    if what == "nobody":
        assert [check.state for check in checks] == ["ok", "fail", "skip", "skip", "skip"]


@pytest.mark.parametrize("hearing", [True, False])
def test_a_microphone_that_the_running_daemon_has_is_what_the_daemon_says_of_it(examine, settings, broker, noisy, start, hearing):
    broker.start()
    settings()
    witness = broker.witness()
    daemon = start("urbandetect", "run", env=noisy.env)
    witness.wait_for(lambda line: line == "1 urbandetect/street/mic1/status online")
    if hearing:
        noisy.fault("busy")
    else:
        noisy.fault("unplug")
        witness.wait_for(lambda line: line == "1 urbandetect/street/mic1/status no_audio", after=len(witness.lines))
    witness.wait_for(lambda line: f'"hearing": {"true" if hearing else "false"}' in line)
    checks = examine()
    assert checks["mic1 device"]["what"].startswith("the running daemon has it")
    assert wrong(checks) == ([] if hearing else ["mic1 opens"])
    assert checks["outbox"]["what"].endswith("in use by the running daemon")
    daemon.send(signal.SIGTERM)
    assert daemon.end() == 0
    assert not [line for line in daemon.errors.read_text().splitlines() if "connection lost" in line or "another client" in line]
    if hearing:  # nobody online speaks for it now
        assert wrong(examine()) == ["mic1 device"]


def test_every_source_is_looked_at(examine, settings, broker, noisy):
    broker.start()
    settings(
        first="[[source]]\nname = 'near'\n[[source]]\nname = 'far'\ndevice = 'hw:7'\n[[source]]\nname = 'tape'\ninput = 'no.wav'"
    )
    checks = examine()
    assert wrong(checks) == ["far device", "tape device"]
    assert checks["near level"]["state"] == "ok"


@pytest.mark.parametrize("fault", ["stall", "unplug"])
def test_a_microphone_that_is_lost_while_it_is_heard(microphone, noisy, start, fault):
    script = f"""
import threading
from detector.audio.microphone import Microphone
from detector.doctor import sound
mic = Microphone("hw:1", threading.Event())
open("control", "w").write("{fault}")
heard = sound.listen(mic, 5.0)
print(sound.judge_samples("samples", heard), flush=True)
sound.os._exit(0)
"""
    program = start(sys.executable, "-c", script, env=noisy.env)
    program.wait_for(lambda line: "state='fail'" in line and "microphone Street USB Mic" in line)


@pytest.mark.parametrize("text", ["no_such_key = 1", f"[mqtt]\npassword = '{SECRET}'", "[mqtt]\ntls = 1"])
def test_settings_that_cannot_be_read_are_the_first_line_and_the_rest_is_there(examine, tmp_path, text):
    (tmp_path / "detector.toml").write_text(text)
    checks = examine()
    assert wrong(checks) == ["settings"]
    assert "detector.toml" in checks["settings"]["what"]
    assert list(checks) == [name for name in NAMES if not name.startswith("mic1")]


class TestMeter:
    def test_the_microphone_that_hears_a_clap_shows_it(self, microphone, bursts, urbandetect):
        microphone.hears(bursts(1.0, (0.4, 0.6), rate=48000))
        done = urbandetect("devices", "--meter", "--json", "--seconds", 2, env=os.environ | microphone.env)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == 20
        names = ["Street USB Mic: Audio (hw:1,0)", "Street USB Mic"]
        assert all(
            [(row["index"], row["name"], row["trouble"]) for row in rows] == [(0, names[0], ""), (1, names[1], "")]
            for rows in lines
        )
        levels = [rows[0]["dbfs"] for rows in lines if rows[0]["dbfs"] is not None]
        assert max(levels) > -3
        assert min(levels) < -100

    def test_a_terminal_is_written_over_and_ctrl_c_ends_it(self, microphone, bursts, tmp_path):
        microphone.hears(bursts(1.0, (0.0, 1.0), rate=48000))
        near, far = os.openpty()
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background job ignores it
        program = [sys.executable, "-c", f"{heed}; from detector.cli import main; main()", "devices", "--meter"]
        run = subprocess.Popen(program, env=os.environ | microphone.env, stdout=far, stderr=subprocess.PIPE, cwd=tmp_path)
        os.close(far)
        said, began_s = b"", time.monotonic()
        try:
            while said.count(b"dBFS\r\n") < 10 and time.monotonic() - began_s < 20:
                said += os.read(near, 4096)
            run.send_signal(signal.SIGINT)
            assert run.wait(10) == 130
        finally:
            run.kill()
            run.wait()
            run.stderr.close()
            os.close(near)
        assert b"\x1b[2A" in said
        assert b"####" in said

    def test_a_device_that_cannot_be_opened_says_why_in_its_row(self, noisy, start):
        script = """
import sys
from detector import meter
devices = meter.list_devices()
open("control", "w").write("busy")
meter.list_devices = lambda: devices
from detector.audio import microphone
microphone.list_devices = lambda: devices
meter.show(0.5, False)
"""
        program = start(sys.executable, "-c", script, env=noisy.env)
        program.wait_for(lambda line: "is in use by another program" in line)
        assert program.end() == 0

    def test_seconds_are_for_the_meter(self, urbandetect):
        assert urbandetect("devices", "--seconds", 1).returncode == 64
