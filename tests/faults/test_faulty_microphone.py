"""What goes wrong with microphones, on the real PortAudio: said within TOLD_S, and heard again within the time each test states."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from parts import PATIENCE_S, Card

from detector.audio.devices import DEADLINE_S
from detector.audio.microphone import BUFFER_S, Handover
from detector.model import Model
from detector.pipeline import Pipeline

TOLD_S = 3.0
"""From losing the sound to `no_audio`."""
BACK_S = 5.0
"""From a microphone that is back to its sound: it is looked for every second at first, later every half minute."""
STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"

LISTEN = """
import json, sys, threading, time
from detector.audio import devices, microphone
from detector.audio.source import SourceLost
from detector.errors import UrbandetectError
{before}
wake = threading.Event()
try:
    mic = microphone.Microphone(sys.argv[1], wake)
    print("open", mic.device.name, mic.rate, flush=True)
    {between}
    while True:
        block = mic.read()
        if block:
            print(json.dumps([block.first, len(block.samples), block.reason, float(abs(block.samples).max())]), flush=True)
        wake.wait(0.1)
        wake.clear()
except SourceLost as lost:
    print("lost", lost, flush=True)
except UrbandetectError as error:
    print(error.exit_code, error, flush=True)
devices.os._exit(0)
"""

RUN = """
from pathlib import Path
from detector.audio import devices, microphone
{before}
from detector.cli import main
main()
"""


@pytest.fixture
def bursting(microphone, bursts):
    """A microphone that hears half a second of tone every second."""
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    return microphone


@pytest.fixture
def listen(start, microphone):
    """The microphone alone: a line when it is open, then each block as JSON `[first, samples, reason, peak]`, then how it ended."""

    def run(device, before="", between=""):
        script = LISTEN.format(before=before, between=between)
        return start(sys.executable, "-c", script, device, env=microphone.env)

    return run


@pytest.fixture
def witness(broker, tmp_path):
    (tmp_path / "detector.toml").write_text('node = "street"\nlog_level = "info"\n')
    broker.start()
    return broker.witness()


@pytest.fixture
def heard(bursting, witness, broker, start, loudness_model):
    """The daemon, with an event open. before: what its program does first."""

    def run(device="hw:1", before=""):
        options = ["--device", device, "--mqtt", f"127.0.0.1:{broker.port}", "--model", loudness_model]
        program = start(sys.executable, "-c", RUN.format(before=before), "run", *options, env=bursting.env)
        witness.wait_for(lambda line: line.endswith("loud/state ON"), after=len(witness.lines))
        return program

    return run


def said(program, text, within_s=PATIENCE_S):
    """The warnings so far, once one of them says this."""
    deadline = time.monotonic() + within_s
    while not re.search(text, program.errors.read_text()):
        assert time.monotonic() < deadline, program.errors.read_text()
        time.sleep(0.02)
    return [line for line in program.errors.read_text().splitlines() if not line.startswith("info ")]


def lost_in_time(microphone, witness, fault):
    """The number of the line that says so, within TOLD_S of this fault."""
    begun, before = time.monotonic(), len(witness.lines)
    microphone.fault(fault)
    lost = witness.wait_for(lambda line: line.endswith("mic1/status no_audio"), after=before)
    took_s = time.monotonic() - begun
    print(f"{fault}: no_audio after {took_s:.2f} s")
    assert took_s < TOLD_S
    return lost


def heard_in_time(witness, events, after, begun_s, within_s=BACK_S):
    """An event that ended in a session that had not begun by line `after`."""
    back = witness.wait_for(lambda line: line.endswith("mic1/status online"), after=after)
    again = witness.wait_for(lambda line: '"phase":"end"' in line, after=back)
    took_s = time.monotonic() - begun_s
    print(f"first event {took_s:.2f} s after the return")
    assert took_s < within_s
    (event,) = events(witness.lines[again : again + 1])
    assert event["session"] not in {earlier["session"] for earlier in events(witness.lines[:after])}


@pytest.mark.parametrize("fault", ["unplug", "stall", "poll"])
def test_a_lost_microphone_is_told_within_three_seconds_and_heard_again_five_after_its_return(
    bursting, heard, witness, events, fault
):
    """`poll`: PortAudio's flag stays active and its thread turns in circles; closing ends that."""
    run = heard()
    lost = lost_in_time(bursting, witness, fault)
    begun_s = time.monotonic()
    bursting.fault("")
    heard_in_time(witness, events, lost, begun_s)
    assert run.process.poll() is None
    assert len([line for line in said(run, "looking for it") if "looking for it" in line]) <= 2


@pytest.mark.parametrize(("fault", "deadline_s"), [("hang", DEADLINE_S), ("yank", 1.0)])
def test_a_microphone_that_cannot_be_closed_ends_the_program_with_75_and_the_next_one_hears(
    bursting, heard, witness, events, fault, deadline_s
):
    """`yank` is what a USB microphone does that is pulled out while it runs: PortAudio's thread cannot be stopped any more."""
    run = heard(before=f"devices.DEADLINE_S = {deadline_s}")
    lost = lost_in_time(bursting, witness, fault)
    begun_s = time.monotonic()
    assert run.end() == 75
    took_s = time.monotonic() - begun_s
    print(f"left {took_s:.2f} s later")
    assert took_s < deadline_s + 1
    (line,) = [line for line in said(run, "hangs") if line.startswith("urbandetect: ")]
    assert re.fullmatch(rf"urbandetect: closing .*hw:1,0\).*: hangs for more than {deadline_s:g} s; a supervisor should .*", line)
    witness.wait_for(lambda line: line.endswith("street/status offline"), after=lost)
    bursting.fault("")
    begun_s = time.monotonic()
    heard()
    heard_in_time(witness, events, lost, begun_s)


def test_portaudio_that_hangs_when_it_starts_or_looks_again_is_said(bursting, listen):
    impatient = "devices.DEADLINE_S = 0.5"
    bursting.fault("hang")
    run = listen("hw:1", before=impatient)
    run.wait_for(lambda line: line.startswith("75 starting PortAudio: hangs for more than 0.5 s"))
    bursting.fault("")
    run = listen("hw:1", before=impatient, between="mic.close(); open('control', 'w').write('hang'); devices.rescan()")
    run.wait_for(lambda line: line.startswith("75 looking for microphones: hangs for more than 0.5 s"))


def usb_cards(folder, number):
    """/proc/asound and /sys/class/sound with one USB microphone."""
    for old in (folder / "asound").glob("card*"):
        (folder / "sound" / old.name).rename(folder / "sound" / f"card{number}")
        old.rename(folder / "asound" / f"card{number}")
        return
    (folder / "asound" / f"card{number}").mkdir(parents=True)
    (folder / "asound" / f"card{number}" / "usbid").write_text("0d8c:0014\n")
    (folder / "sound" / f"card{number}").mkdir(parents=True)
    (folder / "usb1" / "1-1" / "1-1:1.0").mkdir(parents=True)
    (folder / "sound" / f"card{number}" / "device").symlink_to(folder / "usb1" / "1-1" / "1-1:1.0")


@pytest.mark.parametrize("device", ["Street USB Mic: Audio", "usb:0d8c:0014"])
def test_a_microphone_that_comes_back_as_another_card_is_heard_again_five_seconds_later(
    bursting, heard, witness, events, tmp_path, device
):
    usb_cards(tmp_path, 1)
    run = heard(device, before="devices.resolve.__defaults__ = Path('asound'), Path('sound')")
    lost = lost_in_time(bursting, witness, "unplug")
    bursting.plug(Card(number=3))
    usb_cards(tmp_path, 3)
    begun_s = time.monotonic()
    bursting.fault("")
    heard_in_time(witness, events, lost, begun_s)
    assert run.process.poll() is None


def test_without_a_microphone_at_boot_one_line_says_so_and_it_is_heard_once_plugged_in(bursting, witness, broker, daemon, events):
    bursting.cards = ()
    run = daemon("--device", "Street USB Mic: Audio", "--mqtt", f"127.0.0.1:{broker.port}", env=bursting.env)
    assert len(said(run, "looking for it")) == 1
    waiting = witness.wait_for(lambda line: line.endswith("mic1/status no_audio"))
    time.sleep(1)
    begun_s = time.monotonic()
    bursting.plug(Card())
    heard_in_time(witness, events, waiting, begun_s)
    assert len(said(run, "looking for it")) == 1


def test_a_microphone_that_opens_and_gives_nothing_stays_no_audio_until_it_does(bursting, witness, broker, daemon, events):
    bursting.fault("stall")
    run = daemon("--device", "hw:1", "--mqtt", f"127.0.0.1:{broker.port}", env=bursting.env)
    waiting = witness.wait_for(lambda line: line.endswith("mic1/status no_audio"))
    said(run, "no sound for .*; looking for it")
    assert not any(line.endswith("mic1/status online") for line in witness.lines)
    begun_s = time.monotonic()
    bursting.fault("")
    heard_in_time(witness, events, waiting, begun_s)


def test_an_overflow_is_a_gap_that_counts_its_lost_samples_and_ends_events_at_the_last_good_one(
    microphone, bursts, witness, broker, daemon, events
):
    microphone.hears(bursts(1.0, (0.0, 1.0), rate=48000))
    run = daemon("--device", "hw:1", "--mqtt", f"127.0.0.1:{broker.port}", env=microphone.env)
    witness.wait_for(lambda line: line.endswith("loud/state ON"))
    begun_s = time.monotonic()
    microphone.fault("overflow")
    time.sleep(0.6)
    microphone.fault("")
    told = witness.wait_for(lambda line: "/health " in line and '"overflow"' in line)
    deaf_s = time.monotonic() - begun_s
    again = witness.wait_for(lambda line: '"phase":"start"' in line, after=told)
    mic1 = json.loads(witness.lines[told].split(" ", 2)[2])["sources"]["mic1"]
    _, before, after = (event for event in events(witness.lines[: again + 1]) if event["label"] == "loud")
    assert (mic1["gaps"], before["phase"], after["phase"]) == ({"overflow": 1}, "end", "start")
    lost_s = mic1["lost_samples"] / 48000
    assert 0.6 - BUFFER_S < lost_s < deaf_s + 0.1
    onset_s, onset_after_s = (int(event["id"].rsplit("-", 1)[1]) / 8000 for event in (before, after))
    unscored_s = onset_after_s - (onset_s + before["duration_s"]) - lost_s
    assert -0.02 < unscored_s < 0.1 + 0.05  # a row that was not full, and what was on its way through the resampler
    assert before["session"] == after["session"]
    assert len([line for line in said(run, "samples were lost") if "buffer ran over" in line]) == 1


def test_a_sound_card_that_stands_still_for_a_second_is_a_gap_too(bursting, listen):
    run = listen("hw:1")
    run.wait_for(lambda line: line.startswith("["))
    bursting.fault("stall")
    time.sleep(1.0)
    bursting.fault("")
    gap = run.wait_for(lambda line: '"overflow"' in line)
    (first, count, *_), (after, *_) = (json.loads(line) for line in run.lines[gap - 1 : gap + 1])
    assert (after - first - count) / 48000 == pytest.approx(1.0, abs=0.2)


def test_a_program_that_is_stopped_for_less_than_the_buffer_loses_nothing_and_for_longer_says_so(bursting, listen):
    run = listen("hw:1")
    for stopped_s in (BUFFER_S / 2, 3 * BUFFER_S):
        heard = run.wait_for(lambda line: line.startswith("["), after=len(run.lines))
        run.send(signal.SIGSTOP)
        time.sleep(stopped_s)
        run.send(signal.SIGCONT)
        if stopped_s > BUFFER_S:
            run.wait_for(lambda line: '"overflow"' in line, after=heard)
        else:
            time.sleep(2 * BUFFER_S)
            assert not any("overflow" in line for line in run.lines)


def test_a_reader_that_is_late_loses_the_oldest_and_says_so(bursting, listen):
    run = listen("hw:1", between="time.sleep(3.3)")
    late = run.wait_for(lambda line: '"overload"' in line)
    first, count, reason, _ = json.loads(run.lines[late])
    assert (first > 0, count, reason) == (True, 72000, "overload")


def test_a_failure_in_the_sound_cards_thread_is_said_and_ends_the_session(bursting, listen):
    run = listen("hw:1", between="microphone.Handover.put = lambda *_: 1 / 0")
    run.wait_for(lambda line: line == "lost microphone Street USB Mic: Audio (hw:1,0): ZeroDivisionError: division by zero")
    assert run.errors.read_text() == ""


def test_a_name_that_fits_several_microphones_ends_the_program_at_start_with_one_line(bursting, daemon):
    bursting.cards = (Card(), Card("Yard USB Mic", 2))
    run = daemon("--device", "usb mic: audio", env=bursting.env)
    assert run.end() == 78
    (line,) = said(run, "urbandetect: ")
    assert re.fullmatch(r"urbandetect: microphone usb mic: audio: fits several: .*Street.*, .*Yard.*; name one by .*", line)


def test_a_name_that_fits_several_microphones_later_is_said_and_tried_again(bursting, heard, witness, events):
    run = heard("usb mic: audio")
    lost = lost_in_time(bursting, witness, "unplug")
    bursting.plug(Card(), Card("Yard USB Mic", 2))
    bursting.fault("")
    said(run, "warning .*fits several: .*Street.*Yard")
    begun_s = time.monotonic()
    bursting.plug(Card("Yard USB Mic", 2))
    heard_in_time(witness, events, lost, begun_s)


def test_a_microphone_in_use_says_so_within_two_seconds_and_is_heard_when_it_is_free(bursting, listen):
    run = listen("hw:1", before="devices.list_devices(); open('control', 'w').write('busy')")
    begun_s = time.monotonic()
    run.wait_for(lambda line: line.startswith("75 microphone Street USB Mic: Audio (hw:1,0): is in use by another program; end"))
    assert time.monotonic() - begun_s < 3
    assert run.errors.read_text() == ""
    bursting.fault("")
    listen("hw:1").wait_for(lambda line: line.startswith("["))


def test_a_microphone_that_portaudio_names_a_wrong_rate_of_is_heard_at_its_own(microphone, bursts, daemon, events):
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=16000))
    microphone.cards = (Card(rate=16000, speaker=48000),)
    run = daemon("--device", "hw:1", env=microphone.env)
    run.wait_for(lambda line: '"phase":"end"' in line)
    (ended,) = (event for event in events(run.lines) if event["phase"] == "end")
    assert int(ended["id"].rsplit("-", 1)[1]) / 8000 == pytest.approx(0.2, abs=0.1)
    assert ended["duration_s"] == pytest.approx(0.5, abs=0.1)
    assert said(run, "hearing") == []


def test_a_microphone_that_refuses_every_rate_is_one_line(bursting, listen):
    bursting.cards = (Card(rate=12000, speaker=48000),)
    run = listen("hw:1")
    run.wait_for(lambda line: re.match(r"75 microphone Street.*: refuses its own rate of 48000 Hz and every other", line))
    assert run.errors.read_text() == ""


@pytest.mark.parametrize("channels", ["1 1", "2 2", "1 8", "8 8"])
def test_a_microphone_opens_whatever_its_channels_are(bursting, listen, channels):
    bursting.cards = (Card(channels=channels),)
    listen("hw:1").wait_for(lambda line: line.startswith("[") and json.loads(line)[3] == pytest.approx(0.9, abs=0.01))


def test_broken_alsa_configuration_is_said_and_is_over_when_it_is_mended(bursting, listen, tmp_path):
    good = bursting.env and (tmp_path / "asound.conf").read_text()
    try_it = "\ntry: devices.rescan()\nexcept UrbandetectError as error: print(error, flush=True)\n"
    write = "open('asound.conf', 'w').write"
    run = listen("hw:1", before=f"devices.list_devices(); {write}('pcm.x {{')" + 2 * try_it + f"{write}({good!r})" + try_it)
    run.wait_for(lambda line: line.startswith("["))
    assert [line.split(" (")[0] for line in run.lines[:2]] == ["PortAudio: cannot look for microphones"] * 2


def test_sound_that_is_no_sound_goes_by_and_what_follows_is_found_as_before(microphone, bursts, daemon, events, tmp_path):
    """Not a number, infinite, far too loud, off centre, nothing at all. `so_far` comes from the model's state: that stays whole."""
    (tmp_path / "detector.toml").write_text("[thresholds.so_far]\non = 0.2\n")
    burst, bad = bursts(1.0, (0.2, 0.6), rate=48000), np.ones(14400, np.float32)
    stretches = [bad * np.nan, bad * np.inf, bad * -np.inf, bad * 3e38, bad * 0.3, bad * 0]
    microphone.sample = "float"
    microphone.hears(np.concatenate([burst, *(np.concatenate([stretch, burst]) for stretch in stretches)]))
    run = daemon("--device", "hw:1", env=microphone.env)
    run.wait_for(lambda line: '"so_far"' in line)
    loud = [event for event in events(run.lines) if event["label"] == "loud" and event["phase"] == "end"]
    short = [event for event in loud if event["duration_s"] == pytest.approx(0.4, abs=0.1)][:5]
    onsets = [int(event["id"].rsplit("-", 1)[1]) / 8000 for event in short]
    assert onsets == [pytest.approx(0.2 + index * 1.3, abs=0.1) for index in range(5)]
    assert [event["score"] for event in short] == [pytest.approx(short[0]["score"], abs=0.01)] * 5
    assert all(np.isfinite(event["score_mean"]) for event in events(run.lines))


def test_the_shipped_models_state_stays_whole_and_it_finds_a_bark_after_sound_that_is_no_sound(shipped_model):
    model = Model(shipped_model, "cpu")
    barks, rate = soundfile.read(STREET, dtype="float32", start=round(4.5 * 22050), frames=6 * 22050)
    bad = np.ones(rate // 2, np.float32)
    stretches = [bad * value for value in (np.nan, np.inf, -np.inf, 3e38, -3e38, 0.5, 0)]
    sound = np.concatenate([barks, *stretches, barks]).astype(np.float32)
    handover, pipeline, found = Handover(rate, 1, BUFFER_S), Pipeline(model, 1), []
    pipeline.begin(0, rate)
    for at in range(0, len(sound), rate // 20):
        block = sound[at : at + rate // 20, None]
        handover.put(block, False, handover.arrived_s + len(block) / rate)
        found += pipeline.feed(0, handover.take()) + [change for _, change in pipeline.advance()]
        assert all(np.isfinite(tensor).all() for tensor in pipeline._engine._state)
    barked = [change.onset / rate for change in found if change.phase == "start" and change.label == "dog_bark"]
    assert barked[0] == pytest.approx(6.25 - 4.5, abs=0.5)
    assert any(onset == pytest.approx(6 + 3.5 + 6.25 - 4.5, abs=0.5) for onset in barked)
    assert all(np.isfinite([change.score, change.score_mean, change.mean_square]).all() for change in found)
