"""Killed or asked to stop at any moment: every event was acknowledged, or waits in the outbox, or was never told of."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

KILLS = 200
PUBLISHERS = r"""if True:
    import os, sys
    from pathlib import Path
    from detector.config import MqttSettings
    from detector.publish.mqtt import Mqtt
    from detector.publish.outbox import Outbox

    def publish(run, most):
        mqtt = Mqtt(MqttSettings(host="127.0.0.1", port=int(sys.argv[1])), "street", Outbox(Path("outbox.db"), 1 << 30, 1e6))
        mqtt.start()
        for number in range(most):
            mqtt.event({"source": "mic1", "run": run, "number": number})
            mqtt.label("mic1", "siren", bool(number % 2))
            os.write(1, f"{run} {number} {os.getpid()}\n".encode())
        mqtt.stop(lambda: True)
        os._exit(mqtt.failure is not None)

    kills = int(sys.argv[2])
    for run in range(kills + 1):  # one process after the other: each goes on with the outbox of the one that was killed
        child = os.fork()
        if not child:
            publish(run, 1_000_000 if run < kills else 1)
        ended = os.waitpid(child, 0)[1]
    sys.exit(ended)
"""


def events_of(witness):
    return [json.loads(line.split(" ", 2)[2]) for line in witness.lines if "/mic1/event " in line]


def test_12_killed_at_200_random_moments_under_load_every_event_in_the_outbox_is_delivered_in_order(broker, start, tmp_path):
    dice = random.Random(12)
    broker.start()
    witness = broker.witness()
    publishers = start(sys.executable, "-c", PUBLISHERS, broker.port, KILLS)
    for kill in range(KILLS):
        first = publishers.wait_for(lambda line, kill=kill: line.startswith(f"{kill} "))
        time.sleep(dice.expovariate(1 / 0.03))
        child = int(publishers.lines[first].split()[2])
        if kill % 25 == 12:  # the broker goes as well, now and then, with answers on their way
            os.kill(child, signal.SIGSTOP)
            witness = _after_a_kill(broker, witness)
            os.kill(child, signal.SIGCONT)
            time.sleep(dice.uniform(0, 1.5))
        os.kill(child, signal.SIGKILL)
    assert publishers.end(60) == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    told = Counter(int(line.split()[0]) for line in publishers.lines)
    heard = defaultdict(list)
    for event in events_of(witness):
        if event["number"] not in heard[event["run"]][-200:]:
            heard[event["run"]].append(event["number"])
    assert list(heard) == list(range(KILLS + 1))
    for run, numbers in heard.items():
        assert numbers == list(range(len(numbers))), run  # none missing, none before its time
        assert told[run] <= len(numbers) <= told[run] + 1, run
    repeated = len(events_of(witness)) - sum(map(len, heard.values()))
    print(f"{KILLS} kills, {len(publishers.lines)} events told, none lost, {repeated} repeated")
    assert len(publishers.lines) > 10 * KILLS


def _after_a_kill(broker, before):
    """Kill the broker once it has passed on what it acknowledged, and start it; a subscriber that has seen what the old one saw."""
    _settle(before)
    broker.kill()
    _settle(before)
    broker.start()
    witness = broker.witness()
    witness.lines[:0] = before.lines
    return witness


def _settle(witness):
    """Until it has had nothing new for 0.2 s."""
    seen = -1
    while seen != len(witness.lines):
        seen = len(witness.lines)
        time.sleep(0.2)


def test_12_a_daemon_killed_while_it_hears_has_told_or_kept_every_event_up_to_that_moment(broker, daemon, bursts, tmp_path):
    dice = random.Random(20)
    (tmp_path / "detector.toml").write_text(f'node = "street"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}')
    broker.start()
    witness = broker.witness()
    kills = 8
    for kill in range(kills):
        run = daemon("--input", "-")
        run.wait_for_error("hearing", lambda run=run: run.say(bursts(0.6, (0.0, 0.2))))
        deadline_s = time.monotonic() + dice.uniform(0, 0.5)
        while time.monotonic() < deadline_s:
            run.say(bursts(0.6, (0.0, 0.2)))
            time.sleep(0.01)
        if kill == kills // 2:  # the broker goes as well, with answers on their way
            run.send(signal.SIGSTOP)
            witness = _after_a_kill(broker, witness)
        run.kill()
    last = daemon("--input", "-")
    last.say(bursts(0.3))
    assert last.end() == 0
    witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
    sessions = {}
    for event in events_of(witness):
        if event["label"] == "loud":
            what = (int(event["id"].rsplit("-", 1)[1]), event["phase"])
            seen = sessions.setdefault(event["session"], [])
            if what not in seen:
                seen.append(what)
    assert len(sessions) == kills
    for seen in sessions.values():
        expected = [(4800 * i, phase) for i in range(len(seen)) for phase in ("start", "end")]
        assert seen == expected[: len(seen)]


def _heeds_sigterm(run):
    """Before, Python itself is still starting."""
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    return int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize("moment_s", [0.0, 0.1, 0.2, 0.4, 0.7, 1.5])
@pytest.mark.parametrize("with_broker", [True, False])
def test_20_asked_to_stop_at_any_moment_it_ends_with_0_within_5_s_and_keeps_what_was_not_taken(
    broker, daemon, bursts, tmp_path, moment_s, with_broker
):
    (tmp_path / "detector.toml").write_text(
        f'node = "street"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n[outbox]\npath = "./outbox.db"'
    )
    if with_broker:
        broker.start()
        witness = broker.witness()
    run = daemon("--input", "-")
    while not _heeds_sigterm(run):
        time.sleep(0.002)
    began_s = time.monotonic()
    bursts_said = 0
    while time.monotonic() - began_s < moment_s:
        run.say(bursts(0.6, (0.0, 0.2)))
        bursts_said += 1
        time.sleep(0.02)
    asked_s = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.process.wait(10) == 0, run.errors.read_text()
    print(f"ended {time.monotonic() - asked_s:.2f} s after it was asked")
    assert time.monotonic() - asked_s < 5
    told = []
    if with_broker:
        last_words = [line for line in witness.lines if line.endswith("street/status online")]
        if last_words:
            witness.wait_for(lambda line: line == "1 urbandetect/street/status offline")
        told = [(event["id"], event["phase"]) for event in events_of(witness)]
    if (tmp_path / "outbox.db").exists():
        with sqlite3.connect(tmp_path / "outbox.db") as outbox:
            rows = [json.loads(payload) for (payload,) in outbox.execute("SELECT payload FROM message ORDER BY id")]
        outbox.close()
        told += [(event["id"], event["phase"]) for event in rows]
    loud = [(int(one.rsplit("-", 1)[1]), phase) for one, phase in dict.fromkeys(told) if "-loud-" in one]
    assert loud == [(4800 * i, phase) for i in range(len(loud) // 2) for phase in ("start", "end")]
    if moment_s > 1:
        assert len(loud) // 2 >= bursts_said - 10  # what was said in its last moments, thirty times real time, it may not have read
