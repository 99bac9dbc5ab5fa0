"""SIGHUP, digital silence, what the supervisor is told: the daemon as operations people see it."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest


@pytest.fixture
def settings(tmp_path):
    def write(text):
        (tmp_path / "detector.toml").write_text(text)

    return write


def test_thresholds_change_while_running_and_an_error_keeps_the_old_ones(daemon, bursts, events, settings):
    settings("[thresholds.loud]\non = 0.95")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("hearing")
    settings("[thresholds.loud]\non = 0.8")
    run.send(signal.SIGHUP)
    run.wait_for_error("settings read again")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    settings("[thresholds.loud]\nonn = 0.95")
    run.send(signal.SIGHUP)
    run.wait_for_error("unknown key thresholds.loud.onn; did you mean thresholds.loud.on?; the settings in use stay")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line and "-17600" in line)
    told = events(run.lines)
    assert [int(event["id"].rsplit("-", 1)[1]) for event in told] == [9600, 9600, 17600, 17600]
    assert {event["threshold"] for event in told} == {0.8}


def test_an_event_under_way_is_ended_by_the_new_thresholds_and_tells_by_which_it_began(daemon, bursts, events, settings):
    settings("[thresholds.loud]\non = 0.5\noff = 0.25")
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 1.0)))
    run.wait_for(lambda line: '"phase":"start"' in line)
    settings("[thresholds.loud]\non = 0.99\noff = 0.95")
    run.send(signal.SIGHUP)
    run.wait_for_error("settings read again")
    run.say(bursts(1.0, (0.0, 1.0)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    start, end = events(run.lines)
    assert (end["id"], end["duration_s"], end["threshold"]) == (start["id"], 0.8, 0.5)


def test_another_broker_is_taken_while_running_and_the_first_hears_offline(daemon, broker, bursts, settings, start, tmp_path):
    from parts import Broker

    (tmp_path / "second").mkdir()
    second = Broker(tmp_path / "second", start)
    broker.start()
    second.start()
    text = 'node = "street"\n[mqtt]\nhost = "127.0.0.1"\nport = {}'
    settings(text.format(broker.port))
    witnesses = broker.witness(), second.witness()
    run = daemon("--input", "-")
    witnesses[0].wait_for(lambda line: line.endswith("street/status online"))
    settings(text.format(second.port))
    run.send(signal.SIGHUP)
    witnesses[0].wait_for(lambda line: line.endswith("street/status offline"))
    witnesses[1].wait_for(lambda line: line.endswith("street/status online"))
    run.say(bursts(1.0, (0.2, 0.5)))
    witnesses[1].wait_for(lambda line: '"phase":"end"' in line)
    settings(text.format(broker.port) + '\ntls = true\nca_file = "no.pem"')
    run.send(signal.SIGHUP)
    run.wait_for_error("detector.toml: mqtt.ca_file: no.pem holds no certificate to trust")
    assert "the settings in use stay" in run.errors.read_text()
    assert not any('"phase"' in line for line in witnesses[0].lines)


def test_what_cannot_change_while_running_is_named(daemon, bursts, settings):
    settings("")
    run = daemon("--input", "-")
    run.say(bursts(0.2))
    run.wait_for_error("hearing")
    settings('node = "other"\nlog_level = "info"\n[events]\nupdate_s = 1.0')
    run.send(signal.SIGHUP)
    run.wait_for_error("settings read again; restart urbandetect for what changed in node, events")


def test_a_minute_of_digital_silence_is_a_warning_and_in_health_until_there_is_sound_again(daemon, broker, bursts, settings):
    settings('node = "street"')
    broker.start()
    witness = broker.witness()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.say(bursts(59.0))
    run.wait_for_error("hearing")
    time.sleep(0.3)
    assert "silence" not in run.errors.read_text()
    run.say(bursts(2.0))
    run.wait_for_error("mic1: digital silence for 60 s: is the microphone muted or dead?")
    at = witness.wait_for(lambda line: '"silent": true' in line)
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("mic1: there is sound again")
    at = witness.wait_for(lambda line: "/health " in line, after=at + 1)
    assert json.loads(witness.lines[at].split(" ", 2)[2])["sources"]["mic1"]["silent"] is False
    assert run.errors.read_text().count("digital silence") == 1


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_when_it_is_ready_how_it_is_and_that_it_gets_on(daemon, bursts, tmp_path, kind):
    address = f"\0urbandetect-{tmp_path.name}" if kind == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address)
        supervisor.settimeout(15)
        run = daemon("--input", "-", env={"NOTIFY_SOCKET": address.replace("\0", "@")})
        assert supervisor.recv(4096) == b"READY=1"
        run.say(bursts(0.2))
        said = [supervisor.recv(4096).decode() for _ in range(3)]
        assert all(line.startswith("WATCHDOG=1\nSTATUS=mic1 ") for line in said)
        assert said[-1] == "WATCHDOG=1\nSTATUS=mic1 hearing"
        run.send(signal.SIGHUP)
        while not (line := supervisor.recv(4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            assert line.startswith(b"WATCHDOG")
        assert supervisor.recv(4096) == b"READY=1"
        run.send(signal.SIGTERM)
        while (line := supervisor.recv(4096)) != b"STOPPING=1":
            assert line.startswith(b"WATCHDOG")
        assert run.end() == 0


def test_a_profile_comes_into_force_at_its_hour_of_the_local_clock(daemon, bursts, events, settings, clock):
    settings('[[profile]]\nname = "night"\nbegins = "22:00"\nends = "07:00"\nmuted = ["loud"]')
    day_s = 86_400
    clock.step(round(12 * 3600 - time.time() % day_s))
    run = daemon("--input", "-", env=clock.env | {"TZ": "UTC"})
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    clock.step(11 * 3600)
    run.wait_for_error("profile night is in force")
    run.say(bursts(1.0, (0.2, 0.5)))
    clock.step(11 * 3600)
    run.wait_for_error("profile of the day is in force")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line and "-17600" in line)
    assert [int(event["id"].rsplit("-", 1)[1]) for event in events(run.lines) if event["phase"] == "end"] == [1600, 17600]


def test_a_profile_that_is_in_force_at_the_start_is_said(daemon, bursts, settings):
    half = '[[profile]]\nname = "night"\nbegins = "{}"\nends = "{}"\nmuted = ["loud"]\n'
    settings(half.format("00:00", "12:00") + half.format("12:00", "00:00"))
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for_error("profile night is in force")
