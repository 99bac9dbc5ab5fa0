from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from parts import Card

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
    microphone.cards = (Card(), Card("Yard USB Mic", 2))
    microphone.hears(np.zeros(4800))
    listed = json.loads(urbandetect("devices", "--json", env=os.environ | microphone.env).stdout)
    assert {"Street USB Mic: Audio (hw:1,0)", "Yard USB Mic: Audio (hw:2,0)"} <= {device["name"] for device in listed}
    assert {device["rate"] for device in listed} == {48000}
