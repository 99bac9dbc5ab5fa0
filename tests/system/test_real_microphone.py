from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"


@pytest.fixture
def bursting(microphone, bursts):
    """A microphone that hears half a second of tone every second."""
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    return microphone


def test_events_of_the_microphone_have_the_times_of_its_sound(bursting, daemon, events):
    run = daemon("--device", "hw:1", env=bursting.env)
    second = run.wait_for(lambda line: '"phase":"end"' in line, after=run.wait_for(lambda line: '"phase":"end"' in line) + 1)
    ended = [event for event in events(run.lines[: second + 1]) if event["phase"] == "end"]
    onsets = [int(event["id"].rsplit("-", 1)[1]) / 8000 for event in ended]
    assert onsets == [pytest.approx(0.2, abs=0.1), pytest.approx(1.2, abs=0.1)]
    assert [event["duration_s"] for event in ended] == [pytest.approx(0.5, abs=0.1)] * 2


def test_the_barks_of_the_demo_are_heard_through_the_microphone(microphone, start, events):
    sound, rate = soundfile.read(STREET, dtype="float32", start=round(4.5 * 22050), frames=8 * 22050)
    microphone.hears(np.clip(soxr.resample(sound, rate, 48000), -1, 1))
    run = start("urbandetect", "run", "--device", "hw:1", env=microphone.env)
    run.wait_for(lambda line: '"dog_bark"' in line)
    (bark, *_) = (event for event in events(run.lines) if event["label"] == "dog_bark")
    onset_s = int(bark["id"].rsplit("-", 1)[1]) / 22050
    assert onset_s == pytest.approx(6.25 - 4.5, abs=0.5)


def test_devices_lists_every_microphone(microphone, urbandetect):
    microphone.cards = ("Street USB Mic", "Yard USB Mic")
    microphone.hears(np.zeros(4800))
    listed = json.loads(urbandetect("devices", "--json", env=os.environ | microphone.env).stdout)
    assert {"Street USB Mic: Audio (hw:1,0)", "Yard USB Mic: Audio (hw:2,0)"} <= {device["name"] for device in listed}
    assert {device["rate"] for device in listed} == {48000}


@pytest.mark.parametrize("fault", ["unplug", "stall"])
def test_a_microphone_that_is_lost_is_told_within_three_seconds_and_heard_again_when_it_is_back(
    bursting, daemon, broker, tmp_path, fault
):
    (tmp_path / "detector.toml").write_text('node = "street"')
    broker.start()
    witness = broker.witness()
    run = daemon("--device", "hw:1", "--mqtt", f"127.0.0.1:{broker.port}", env=bursting.env)
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    begun, before = time.monotonic(), len(witness.lines)
    bursting.fault(fault)
    lost = witness.wait_for(lambda line: line.endswith("mic1/status no_audio"), after=before)
    assert time.monotonic() - begun < 3
    sessions = {json.loads(line.split(" ", 2)[2])["session"] for line in witness.lines if '"phase"' in line}
    bursting.fault("")
    back = witness.wait_for(lambda line: line.endswith("mic1/status online"), after=lost)
    again = witness.wait_for(lambda line: '"phase":"end"' in line, after=back)
    assert json.loads(witness.lines[again].split(" ", 2)[2])["session"] not in sessions
    assert run.process.poll() is None


def test_a_microphone_that_opens_but_gives_nothing_stays_no_audio(bursting, daemon, broker, tmp_path):
    (tmp_path / "detector.toml").write_text('node = "street"')
    broker.start()
    witness = broker.witness()
    bursting.fault("stall")
    daemon("--device", "hw:1", "--mqtt", f"127.0.0.1:{broker.port}", env=bursting.env)
    witness.wait_for(lambda line: line.endswith("mic1/status no_audio"))
    lost = witness.wait_for(lambda line: "/health " in line, after=witness.wait_for(lambda line: "/health " in line) + 1)
    assert not any(line.endswith("mic1/status online") for line in witness.lines[: lost + 1])
    bursting.fault("")
    witness.wait_for(lambda line: line.endswith("mic1/status online"))


@pytest.mark.parametrize(
    ("cards", "wanted", "code", "said"),
    [
        ((), "hw:1", 75, "no input device"),
        (("Street USB Mic",), "hw:7", 75, "microphone hw:7: is not there"),
        (("Street USB Mic", "Yard USB Mic"), "usb", 78, "microphone usb: fits several"),
    ],
)
def test_a_microphone_that_cannot_be_chosen_is_one_line_and_its_exit_code(microphone, daemon, cards, wanted, code, said):
    if not cards and Path("/dev/snd").exists():
        pytest.skip("this computer has microphones")
    microphone.cards = cards
    microphone.hears(np.zeros(4800))
    run = daemon("--device", wanted, env=microphone.env)
    assert run.end() == code
    (line,) = run.errors.read_text().splitlines()
    assert said in line
