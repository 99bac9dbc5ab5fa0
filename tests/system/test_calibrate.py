from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from parts import Card

from detector.calibrate import calibrate
from detector.errors import InputError

RATE = 48000


def tone(amplitude=0.1, hz=1000.0, seconds=4.0, rate=RATE):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(rms, seconds=4.0, rate=RATE):
    return np.random.default_rng(0).normal(0, rms, round(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("hz", [980.0, 1000.0, 1013.7])
def test_a_good_tone_says_what_a_full_scale_sine_would_be(rate, hz):
    found = calibrate(tone(hz=hz, rate=rate) + noise(0.001, rate=rate), rate, 94, "mic")
    assert found.calibration_db == pytest.approx(114, abs=0.02)
    assert (found.tone_dbfs, found.tone_hz) == (pytest.approx(-20, abs=0.02), pytest.approx(hz, abs=2))
    assert found.spread_db < 0.1


@pytest.mark.parametrize(
    ("sound", "named"),
    [
        (np.zeros(4 * RATE, np.float32), "the tone is too faint"),
        (tone(0.0005), "the tone is too faint (-66.0 dBFS"),
        (np.clip(tone(1.5), -1, 1), "the sound is clipped (peak 1.00 of full scale)"),
        (tone(hz=250), "the loudest tone is at 250 Hz"),
        (tone(hz=1100), "the loudest tone is at 1100 Hz"),
        (noise(0.1), "the loudest tone is at"),
        (tone() + noise(0.02), "there is other sound"),
        (tone() + tone(0.03, 3000), "there is other sound 9 dB below the tone"),
        (tone() * np.linspace(1, 0.9, 4 * RATE, dtype=np.float32), "the tone is not steady (it wavers by 0.8 dB"),
        (np.concatenate([tone(seconds=3), np.zeros(RATE, np.float32)]), "the tone is not steady"),
    ],
)
def test_what_is_wrong_with_a_tone_is_said_in_one_line(sound, named):
    with pytest.raises(InputError) as caught:
        calibrate(sound, RATE, 94, "microphone x")
    assert f"{caught.value}".startswith(f"microphone x: {named}")
    assert len(f"{caught.value}".splitlines()) == 1


def test_the_hum_of_the_mains_far_below_hearing_does_not_matter():
    hum = tone(0.05, 50)
    assert calibrate(tone() + hum, RATE, 94, "mic").calibration_db == pytest.approx(114, abs=0.01)


def test_a_calibrated_microphone_reads_what_the_calibrator_gives(microphone, urbandetect, broker, daemon, tmp_path: Path):
    microphone.cards = (Card(), Card("Yard USB Mic", 2))
    microphone.hears(tone(0.6, seconds=1.0))
    printed = urbandetect("calibrate", "--device", "hw:1", "--level", "94", "--seconds", "1", env=os.environ | microphone.env)
    assert printed.returncode == 0, printed.stderr
    calibration_db = tomllib.loads(printed.stdout)["calibration_db"]
    assert calibration_db == pytest.approx(94 - 20 * np.log10(0.6), abs=0.02)
    assert len(printed.stdout.splitlines()) == 1
    assert not (tmp_path / "detector.toml").exists()

    source = f'[[source]]\ndevice = "hw:1"\n{printed.stdout}[[source]]\nname = "mic2"\ndevice = "hw:2"\n'
    (tmp_path / "detector.toml").write_text(f'node = "street"\n{source}[events]\nlevel_s = 1.0\nupdate_s = 1.0\n')
    broker.start()
    witness = broker.witness()
    daemon("--mqtt", f"127.0.0.1:{broker.port}", env=microphone.env)

    def second(text, source):
        at = 0
        for _ in range(2):  # in the first the tone has just begun
            at = witness.wait_for(lambda line: f"street/{source}/" in line and text in line, after=at) + 1
        return json.loads(witness.lines[at - 1].split(" ", 2)[2])

    level = second('"lafmax"', "mic1")
    assert level["interval_s"] == 1.0
    assert [level[key] for key in ("laeq", "lafmax", "l10", "l50", "l90")] == pytest.approx([94] * 5, abs=0.11)
    assert level["dbfs"] == level["dbfs_a"] == pytest.approx(20 * np.log10(0.6), abs=0.06)
    assert second('"phase":"update"', "mic1")["level"]["laeq"] == pytest.approx(94, abs=0.11)
    for key in ("laeq", "lafmax", "l10", "l50", "l90"):
        assert second('"lafmax"', "mic2")[key] is None
    assert second('"phase":"update"', "mic2")["level"]["laeq"] is None


def test_a_program_reads_the_calibration_as_json(microphone, urbandetect):
    microphone.hears(tone(0.6, seconds=1.0))
    found = urbandetect(
        "calibrate", "--device", "hw:1", "--level", "114", "--seconds", "1", "--json", env=os.environ | microphone.env
    )
    assert json.loads(found.stdout) == {
        "calibration_db": pytest.approx(114 - 20 * np.log10(0.6), abs=0.02),
        "tone_dbfs": pytest.approx(20 * np.log10(0.6), abs=0.02),
        "tone_hz": 1000.0,
        "spread_db": pytest.approx(0, abs=0.02),
    }


def test_no_tone_is_an_input_that_cannot_be_used_and_no_microphone_may_come_back(microphone, urbandetect):
    microphone.hears(np.zeros(RATE, np.float32))
    silent = urbandetect("calibrate", "--device", "hw:1", "--level", "94", "--seconds", "1", env=os.environ | microphone.env)
    assert (silent.returncode, silent.stdout) == (64, "")
    listening, error = silent.stderr.splitlines()
    assert listening.endswith("listening for 2 s")
    assert error.startswith("urbandetect: microphone Street USB Mic: Audio (hw:1,0): the tone is too faint")
    missing = urbandetect("calibrate", "--device", "hw:7", "--level", "94", env=os.environ | microphone.env)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (75, 1)


@pytest.mark.parametrize("level", ["-26", "nan", "loud"])
def test_a_level_no_calibrator_has_is_wrong_usage(urbandetect, level):
    refused = urbandetect("calibrate", "--level", level)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (64, 1)
    assert "--level" in refused.stderr


def test_a_microphone_that_goes_while_it_is_calibrated_is_said(microphone, start):
    microphone.hears(tone(0.6, seconds=1.0))
    run = start("urbandetect", "calibrate", "--device", "hw:1", "--level", "94", "--seconds", "30", env=microphone.env)
    run.wait_for_error("listening")
    microphone.fault("unplug")
    assert run.end() == 75
    assert run.errors.read_text().splitlines()[1].startswith("urbandetect: microphone Street USB Mic: Audio (hw:1,0): ")
