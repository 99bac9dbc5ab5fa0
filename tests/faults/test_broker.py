"""The broker and the way to it: absent, cut off, silent, unwilling, not whom it says it is. No event is lost by any of it."""

from __future__ import annotations

import datetime
import json
import re
import signal
import time

import numpy as np
import pytest

from detector.config import MqttSettings
from detector.publish.mqtt import Mqtt
from detector.publish.outbox import Outbox

trustme = pytest.importorskip("trustme", reason="needs trustme: pip install -e '.[test]'")


@pytest.fixture
def settings(tmp_path):
    def write(text=""):
        (tmp_path / "detector.toml").write_text(f'node = "street"\n[mqtt]\nhost = "127.0.0.1"\n{text}')

    return write


def told(witness):
    """The events an independent subscriber has seen, in order."""
    payloads = (line.split(" ", 2)[2] for line in witness.lines if "/mic1/event " in line)
    return [json.loads(payload) for payload in payloads]


def onsets(events, phase="end"):
    return [int(event["id"].rsplit("-", 1)[1]) for event in events if event["phase"] == phase and "-loud-" in event["id"]]


def first_time(items):
    return list(dict.fromkeys(items))


def complaints(run):
    return [line for line in run.errors.read_text().splitlines() if line.startswith(("warning", "ERROR", "error", "urbandetect"))]


def wait_until(true, within_s=15.0):
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_09_a_broker_absent_for_a_day_gets_every_event_of_it_in_order_with_its_time(
    broker, daemon, settings, bursts, clock, tmp_path
):
    settings(f"port = {broker.port}")
    run = daemon("--input", "-", env=clock.env)
    for _ in range(10):
        run.say(np.tile(bursts(0.6, (0.0, 0.2)), 50))
    clock.step(86_400)
    run.say(bursts(1.0, (0.2, 0.5)))
    _wait_until_written(tmp_path / "urbandetect")
    run.send(signal.SIGSTOP)
    broker.start()
    witness = broker.witness()
    run.send(signal.SIGCONT)
    back_s = time.monotonic()
    witness.wait_for(lambda line: '"phase":"end"' in line and line.count("-loud-2401600"), within_s=40)
    print(f"{len(told(witness))} messages of a day within {time.monotonic() - back_s:.1f} s of the broker's return")
    events = [event for event in told(witness) if event["label"] == "loud"]
    expected = [4800 * i for i in range(500)] + [2_401_600]
    assert first_time(onsets(events, "start")) == expected
    assert first_time(onsets(events)) == expected
    starts = [datetime.datetime.fromisoformat(event["start"]) for event in events]
    assert (starts[-1] - starts[0]) > datetime.timedelta(days=1)
    assert len(complaints(run)) == 1, complaints(run)  # an outage is said once


def _wait_until_written(folder):
    """Until the outbox, which nobody else can open, has not grown for half a second."""
    sizes = [-1.0]
    while len(sizes) < 6 or sizes[-6] != sizes[-1] or sizes[-1] <= 0:
        time.sleep(0.1)
        sizes.append(sum(file.stat().st_size for file in folder.glob("outbox-street.db*")))


def test_10_a_connection_cut_between_publish_and_acknowledgement_repeats_the_event_and_loses_none(
    broker, daemon, settings, bursts, wire
):
    broker.start()
    line = wire(broker.port)
    settings(f"port = {line.port}")
    witness = broker.witness()
    under_way, cuts = set(), []

    def lets(way, packet):
        kind, body = packet[0] >> 4, packet[2 + (packet[1] > 127) :]
        topic_end = 2 + int.from_bytes(body[:2], "big")
        if way == "up" and kind == line.PUBLISH and body[2:topic_end].endswith(b"/event"):
            under_way.add(body[topic_end : topic_end + 2])
        if way == "down" and kind == line.PUBACK and body[:2] in under_way and len(cuts) < 3:
            under_way.clear()
            cuts.append(packet)
            return "cut"
        return "pass"

    line.lets = lets
    run = daemon("--input", "-")
    for _ in range(20):
        run.say(bursts(0.6, (0.0, 0.2)))
    witness.wait_for(lambda line: '"phase":"end"' in line and "-loud-91200" in line)
    run.say(bursts(0.1))
    assert run.end() == 0
    got = [(event["id"], event["phase"]) for event in told(witness) if event["label"] == "loud"]
    print(f"{len(set(got))} messages, {len(got) - len(set(got))} of them twice, after {len(cuts)} cuts")
    assert len(cuts) == 3
    assert len(got) > len(set(got))  # the same id and phase again: a subscriber can tell
    assert first_time(got) == [
        (one, phase) for i in range(20) for one in [re.sub(r"\d+$", str(4800 * i), got[0][0])] for phase in ("start", "end")
    ]


def test_11_a_line_that_falls_silent_is_left_within_15_s_and_the_events_come_over_the_next(broker, daemon, settings, bursts, wire):
    broker.start()
    line = wire(broker.port)
    settings(f"port = {line.port}\n[events]\nlevel_s = 0.1")
    witness = broker.witness()
    run = daemon("--input", "-")
    run.say(bursts(0.2))
    witness.wait_for(lambda line: line.endswith("mic1/status online"))
    line.silent = True
    run.say(bursts(1.0, (0.2, 0.5)))
    begin_s = time.monotonic()
    run.wait_for_error("nothing acknowledged for 10 s", lambda: run.say(bursts(0.02)))  # levels go out, and nobody answers them
    print(f"left after {time.monotonic() - begin_s:.1f} s")
    assert time.monotonic() - begin_s < 15
    line.cut()
    line.silent = False
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert first_time(onsets(told(witness))) == [3200]


def test_one_connection_closed_on_the_way_does_not_make_an_old_broker_of_a_new_one(broker, daemon, settings, bursts, wire):
    broker.start()
    line, seen = wire(broker.port), []
    settings(f"port = {line.port}")

    def lets(way, packet):
        if way == "up" and packet[0] >> 4 == line.CONNECT:
            seen.append(b"MQTT\x05" in packet)
        return "cut" if len(seen) == 1 else "pass"

    line.lets = lets
    witness = broker.witness()
    run = daemon("--input", "-")
    witness.wait_for(lambda line: line.endswith("street/status online"))
    line.cut()
    run.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    assert seen == [True, False, True]


@pytest.mark.parametrize("old", ["old", "cut"])
def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(broker, daemon, settings, bursts, wire, old):
    broker.start()
    line = wire(broker.port)
    settings(f"port = {line.port}")
    line.lets = lambda way, packet: old if way == "up" and packet[0] >> 4 == line.CONNECT and b"MQTT\x05" in packet else "pass"
    witness = broker.witness()
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    witness.wait_for(lambda line: '"phase":"end"' in line)
    run.say(bursts(0.1))
    assert run.end() == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    assert [event["phase"] for event in told(witness)] == ["start", "end"]


class TestRefusals:
    """13: told apart, said once a minute, and no event is lost."""

    def test_13_a_wrong_password_is_said_once_and_the_events_wait_until_it_is_right(
        self, broker, daemon, settings, bursts, tmp_path
    ):
        (tmp_path / "secret").write_text("wrong\n")
        settings(f"port = {broker.port}\nusername = 'me'\npassword_file = '{tmp_path / 'secret'}'")
        broker.start("me", "right")
        run = daemon("--input", "-")
        run.say(bursts(1.0, (0.2, 0.5)))
        wait_until(lambda: complaints(run))
        time.sleep(2.5)
        (complaint,) = complaints(run)
        assert "refused: the user name or password is wrong" in complaint
        assert "wrong\n" not in complaint
        witness = broker.witness("-u", "me", "-P", "right")  # before: it may be tried again at any moment
        (tmp_path / "secret").write_text("right\n")
        run.send(signal.SIGHUP)  # else it would try again within half a minute
        wait_until(lambda: "settings read again" in run.errors.read_text())
        witness.wait_for(lambda line: '"phase":"end"' in line)
        assert onsets(told(witness)) == [1600]

    def test_a_recording_whose_events_a_broker_refuses_ends_as_a_configuration_error_and_keeps_them(
        self, broker, daemon, settings, bursts, tmp_path
    ):
        import soundfile

        soundfile.write(tmp_path / "short.wav", bursts(1.0, (0.2, 0.5)), 8000)
        (tmp_path / "secret").write_text("wrong\n")
        settings(f"port = {broker.port}\nusername = 'me'\npassword_file = 'secret'")
        broker.start("me", "right")
        refused = daemon("--input", "short.wav", "--speed", "max")
        assert refused.end() == 78
        assert "2 events wait in the outbox" in complaints(refused)[-1]
        (tmp_path / "secret").write_text("right\n")
        witness = broker.witness("-u", "me", "-P", "right")
        later = daemon("--input", "short.wav", "--speed", "max")
        assert later.end() == 0
        witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
        sessions = [event["session"] for event in told(witness)]
        assert sessions == sorted(sessions, key=sessions.index)
        assert len(set(sessions)) == 2
        assert onsets(told(witness)) == [1600, 1600]

    def test_13_what_an_access_list_denies_is_said_once_and_stays_and_the_rest_goes_on(
        self, broker, daemon, settings, bursts, tmp_path
    ):
        settings(f"port = {broker.port}")
        allowed = tmp_path / "acl"
        allowed.write_text(
            "topic read #\ntopic read $SYS/#\ntopic write urbandetect/street/status\ntopic write urbandetect/street/mic1/#\n"
        )
        allowed.chmod(0o600)
        denied = allowed.read_text().replace("mic1/#", "mic1/status\ntopic write urbandetect/street/health")
        allowed.write_text(denied)
        broker.start("", "", f"acl_file {allowed}")
        witness = broker.witness()
        run = daemon("--input", "-")
        run.say(bursts(1.0, (0.2, 0.5)))
        witness.wait_for(lambda line: line.endswith("mic1/status online"))
        wait_until(lambda: complaints(run))
        run.say(bursts(1.0, (0.2, 0.5)))
        time.sleep(0.5)
        (complaint,) = complaints(run)
        assert "Not authorized" in complaint
        assert "check its access list" in complaint
        assert told(witness) == []
        allowed.write_text("topic readwrite #\ntopic read $SYS/#\n")
        broker.program.send(signal.SIGHUP)
        run.send(signal.SIGTERM)
        assert run.end() == 0
        again = daemon("--input", "-")
        witness.wait_for(lambda line: '"phase":"end"' in line and "-9600" in line)
        assert first_time(onsets(told(witness))) == [1600, 9600]
        again.send(signal.SIGTERM)

    def test_13_a_source_that_may_not_publish_holds_no_other_back_and_is_heard_when_it_may_without_a_restart(
        self, broker, settings, bursts, tmp_path, monkeypatch
    ):
        """In this process, that need not wait for a minute."""
        monkeypatch.setattr("detector.publish.delivery.REFUSED_S", 1.0)
        access = tmp_path / "acl"
        access.write_text("topic readwrite urbandetect/street/north/#\ntopic read #\ntopic read $SYS/#\n")
        access.chmod(0o600)
        broker.start("", "", f"acl_file {access}")
        witness = broker.witness()
        outbox = Outbox(tmp_path / "outbox.db", 1 << 30, 1e6)
        mqtt = Mqtt(MqttSettings(host="127.0.0.1", port=broker.port), "street", outbox)
        for number in range(1000):
            mqtt.event({"source": "south", "number": number})
        mqtt.start()
        time.sleep(2)
        mqtt.event({"source": "north", "number": 1000})
        mqtt.source("south", True)
        witness.wait_for(lambda line: "north/event" in line, within_s=3)
        assert not any("south" in line for line in witness.lines)
        access.write_text("topic readwrite #\ntopic read $SYS/#\n")
        broker.program.send(signal.SIGHUP)
        witness.wait_for(lambda line: "south/event" in line and "999" in line, within_s=20)
        witness.wait_for(lambda line: "south/status online" in line)
        witness.wait_for(lambda line: line == "1 urbandetect/street/status online")
        numbers = [json.loads(line.split(" ", 2)[2])["number"] for line in witness.lines if "south/event" in line]
        assert first_time(numbers) == list(range(1000))
        mqtt.stop(lambda: True)
        assert mqtt.failure is None

    def test_13_two_clients_of_one_id_do_not_storm_the_broker_and_the_log_says_what_it_is(
        self, broker, daemon, settings, bursts, start, tmp_path
    ):
        settings(f"port = {broker.port}\nclient_id = 'twin'")
        broker.start("", "", "log_type notice", "log_dest stderr")
        began_s = time.monotonic()
        twins = [daemon("--input", "-", env={"XDG_STATE_HOME": str(tmp_path / name)}) for name in ("one", "other")]
        wait_until(lambda: any("another client uses the same client id" in run.errors.read_text() for run in twins), within_s=30)
        for run in twins:
            run.say(bursts(1.0, (0.2, 0.5)))
        time.sleep(3)
        connections = broker.program.errors.read_text().count("New client connected")
        print(f"{connections} connections, said {time.monotonic() - began_s - 3:.1f} s after the start")
        assert connections < 20
        for run in twins:
            assert len(complaints(run)) <= 3
        twins[0].send(signal.SIGTERM)
        assert twins[0].end() == 0
        witness = broker.witness()
        twins[1].say(bursts(1.0, (0.2, 0.5)))
        witness.wait_for(lambda line: '"phase":"end"' in line and "-9600" in line, within_s=30)


class TestTls:
    """14: nobody but the broker we trust hears us, and never in plain."""

    @pytest.fixture
    def authority(self, tmp_path):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        return authority

    @pytest.fixture
    def secured(self, broker, authority, tmp_path):
        """The broker with a certificate for these names, signed by the authority or another."""

        def begin(*names, by=None, more=(), **how):
            certificate = (by or authority).issue_cert(*(names or ("127.0.0.1",)), **how)
            certificate.private_key_pem.write_to_path(tmp_path / "broker.key")
            (tmp_path / "broker.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
            broker.start(
                "",
                "",
                f"certfile {tmp_path / 'broker.pem'}",
                f"keyfile {tmp_path / 'broker.key'}",
                f"cafile {tmp_path / 'ca.pem'}",
                *more,
            )
            return broker

        return begin

    def test_events_go_over_tls_to_a_broker_that_is_trusted_and_shows_our_certificate(
        self, secured, authority, daemon, settings, bursts, tmp_path
    ):
        ours = authority.issue_cert("street@example.org")
        ours.private_key_pem.write_to_path(tmp_path / "our.key")
        (tmp_path / "our.pem").write_bytes(b"".join(pem.bytes() for pem in ours.cert_chain_pems))
        broker = secured(more=["require_certificate true"])
        settings(f"port = {broker.port}\ntls = true\nca_file = 'ca.pem'\ncert_file = 'our.pem'\nkey_file = 'our.key'")
        files = ("--cafile", tmp_path / "ca.pem", "--cert", tmp_path / "our.pem", "--key", tmp_path / "our.key")
        witness = broker.witness(*files)
        run = daemon("--input", "-")
        run.say(bursts(1.0, (0.2, 0.5)))
        witness.wait_for(lambda line: '"phase":"end"' in line)
        assert complaints(run) == []

    @pytest.mark.parametrize(
        ("what", "said"),
        [
            ("an untrusted authority", "the broker's certificate is refused: "),
            ("an expired certificate", "the broker's certificate is refused: certificate has expired"),
            ("the certificate of another host", "the broker's certificate is refused: IP address mismatch"),
            ("no TLS at all", "no connection (connection reset by peer)"),
            ("no certificate of ours", "closes the connection; are mqtt.port, mqtt.tls and the certificates right?"),
        ],
    )
    def test_14_a_broker_that_cannot_be_trusted_gets_nothing_and_the_reason_is_said_once(
        self, secured, broker, daemon, settings, bursts, wire, tmp_path, what, said
    ):
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        match what:
            case "an untrusted authority":
                secured(by=trustme.CA())
            case "an expired certificate":
                secured(not_before=past, not_after=past + datetime.timedelta(days=1))
            case "the certificate of another host":
                secured("127.0.0.2")
            case "no TLS at all":
                trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
                broker.start()
            case "no certificate of ours":
                secured(more=["require_certificate true"])
        settings(f"port = {broker.port}\ntls = true\nca_file = 'ca.pem'")
        run = daemon("--input", "-")
        run.say(bursts(1.0, (0.2, 0.5)))
        wait_until(lambda: complaints(run))
        time.sleep(2)
        (complaint,) = complaints(run)
        assert said in complaint
        run.send(signal.SIGTERM)
        assert run.end() == 0
        assert "2 events wait in the outbox" in complaints(run)[-1]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "tls = true\nca_file = 'no.pem'",
                "detector.toml: mqtt.ca_file: no.pem holds no certificate to trust (no such",
            ),
            ("tls = true\nca_file = 'text.pem'", "text.pem holds no certificate to trust"),
            ("tls = true\ncert_file = 'text.pem'", "mqtt.cert_file: text.pem are no certificate and key that fit"),
            ("ca_file = 'text.pem'", "mqtt.ca_file is given without mqtt.tls; set mqtt.tls = true"),
            ("tls = true\nkey_file = 'text.pem'", "mqtt.key_file is given without mqtt.cert_file; give both"),
            ("username = 'me'\npassword_file = 'no'", "detector.toml: mqtt.password_file: no cannot be read"),
        ],
    )
    def test_files_that_cannot_be_used_are_one_line_before_anything_starts(self, daemon, settings, tmp_path, text, said):
        (tmp_path / "text.pem").write_text("hello")
        settings(text)
        run = daemon("--input", "-")
        assert run.process.wait(10) == 78
        (line,) = run.errors.read_text().splitlines()
        assert said in line


@pytest.mark.parametrize("way", ["environment", "credential"])
def test_the_password_may_come_from_the_environment_or_systemd(broker, daemon, settings, tmp_path, way):
    settings(f"port = {broker.port}\nusername = 'me'")
    broker.start("me", "right")
    (tmp_path / "mqtt_password").write_text("right\n")
    env = {"environment": {"URBANDETECT_MQTT_PASSWORD": "right"}, "credential": {"CREDENTIALS_DIRECTORY": str(tmp_path)}}[way]
    witness = broker.witness("-u", "me", "-P", "right")
    run = daemon("--input", "-", env=env)
    witness.wait_for(lambda line: line == "1 urbandetect/street/status online")
    assert "right" not in run.errors.read_text()


def test_events_carry_their_content_type_and_until_when_they_matter(broker, daemon, settings, bursts, start):
    broker.start()
    settings(f"port = {broker.port}\n[outbox]\nmax_days = 2.0")
    witness = start(
        "mosquitto_sub",
        "-V",
        "5",
        "-h",
        "127.0.0.1",
        "-p",
        broker.port,
        "-q",
        "1",
        "-t",
        "urbandetect/+/+/event",
        "-t",
        "$SYS/broker/version",
        "-F",
        "%t %C %E",
    )
    witness.wait_for(lambda line: "version" in line)
    run = daemon("--input", "-")
    run.say(bursts(1.0, (0.2, 0.5)))
    at = witness.wait_for(lambda line: "/event" in line)
    _, kind, expiry_s = witness.lines[at].split()
    assert kind == "application/json"
    assert 2 * 86_400 - 60 < int(expiry_s) <= 2 * 86_400


def test_no_port_is_open(broker, daemon, settings, bursts):
    from pathlib import Path

    broker.start()
    settings(f"port = {broker.port}")
    witness = broker.witness()
    run = daemon("--input", "-")
    witness.wait_for(lambda line: line == "1 urbandetect/street/status online")
    folder = Path(f"/proc/{run.process.pid}/fd")
    mine = {str(link.readlink()) for link in folder.iterdir()}
    ours = 0
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if f"socket:[{fields[9]}]" not in mine:
                continue
            assert fields[3] == "01", row  # ESTABLISHED: to the broker, and nothing else
            ours += 1
    assert ours == 1
