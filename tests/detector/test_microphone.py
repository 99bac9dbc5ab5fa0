from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from detector.audio.devices import Device, resolve, within
from detector.audio.microphone import HELD_S, Handover
from detector.audio.source import LATE_S
from detector.cli import cli
from detector.errors import ConfigError, Hang, TryAgainError

NAMES = [
    "HDA Intel: Analog (hw:0,0)",
    "USB Mic: Audio (hw:10,0)",
    "USB Mic: Audio (hw:1,0)",
    "USB Mic: Audio (hw:1,2)",
    "Array: Audio (hw:2,0,0) {subdevice #0}",
    "pulse",
    "pulse 2",
    "default",
]
DEVICES = [Device(index * 3, name, 2, 48000, name == "default") for index, name in enumerate(NAMES)]


@pytest.fixture
def cards(tmp_path):
    """/proc/asound and /sys/class/sound of a computer: card 1 is called `Mic`; cards 1 and 10 are two USB microphones of one make,
    card 2 is of another; card 0 is no USB device."""
    proc, sys = tmp_path / "asound", tmp_path / "sound"
    for number, usbid, port, serial in [
        (0, "", "", ""),
        (1, "0d8c:0014", "1-1.2", "A-17"),
        (10, "0d8c:0014", "1-1.4", ""),
        (2, "2886:0018", "3-2", ""),
    ]:
        (proc / f"card{number}").mkdir(parents=True)
        (sys / f"card{number}").mkdir(parents=True)
        if usbid:
            device = tmp_path / "devices" / port
            (device / f"{port}:1.0").mkdir(parents=True)
            (sys / f"card{number}" / "device").symlink_to(device / f"{port}:1.0")
            (proc / f"card{number}" / "usbid").write_text(f"{usbid}\n")
            if serial:
                (device / "serial").write_text(f"{serial}\n")
    (proc / "Mic").symlink_to("card1")
    return proc, sys


def held(cards, card, device, process):
    folder = cards[0] / f"card{card}" / f"pcm{device}c" / "sub0"
    folder.mkdir(parents=True)
    (folder / "status").write_text(f"state: RUNNING\nowner_pid   : {process}\ntrigger_time: 1.0\n" if process else "closed\n")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("hw:1", "USB Mic: Audio (hw:1,0)"),
        ("hw:1,0", "USB Mic: Audio (hw:1,0)"),
        ("hw:1,2", "USB Mic: Audio (hw:1,2)"),
        ("hw:10", "USB Mic: Audio (hw:10,0)"),
        ("hw:2", "Array: Audio (hw:2,0,0) {subdevice #0}"),
        ("hw:CARD=Mic", "USB Mic: Audio (hw:1,0)"),
        ("hw:CARD=Mic,2", "USB Mic: Audio (hw:1,2)"),
        ("hw:CARD=Mic,DEV=2", "USB Mic: Audio (hw:1,2)"),
        ("usb:2886:0018", "Array: Audio (hw:2,0,0) {subdevice #0}"),
        ("usb:0D8C:0014:A-17", "USB Mic: Audio (hw:1,0)"),
        ("usb:0d8c:0014:1-1.4", "USB Mic: Audio (hw:10,0)"),
        ("3", "USB Mic: Audio (hw:10,0)"),
        ("intel", "HDA Intel: Analog (hw:0,0)"),
        ("pulse", "pulse"),
        ("default", "default"),
        ("", "default"),
    ],
)
def test_a_microphone_is_resolved_exactly(cards, wanted, name):
    assert resolve(wanted, DEVICES, *cards).name == name


@pytest.mark.parametrize(
    "wanted", ["hw:3", "hw:1,1", "hw:CARD=Other", "usb:0d8c:0015", "usb:0d8c:0014:B-2", "usb:0d8c:0014:1-1", "1", "99", "webcam"]
)
def test_a_microphone_that_is_not_there_may_come_back_and_the_others_are_listed(cards, wanted):
    with pytest.raises(TryAgainError, match=r"is not there; there are: 0 HDA Intel.*, 21 default") as caught:
        resolve(wanted, DEVICES, *cards)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    "wanted",
    ["hw:", "hw:x", "hw:-1", "hw:1,", "hw:1,0,0", "hw:CARD=", "hw:CARD=../x", "usb:", "usb:1:2", "usb:0d8c-0014", "-1", "1.5"],
)
@pytest.mark.parametrize("devices", [DEVICES, []], ids=["microphones", "none"])
def test_a_microphone_that_is_misspelt_is_a_configuration_error_that_tells_the_form(cards, wanted, devices):
    with pytest.raises(ConfigError, match=r"is no index; give a whole number|is not hw:N, hw:N,M|is not usb:VID:PID or") as caught:
        resolve(wanted, devices, *cards)
    assert caught.value.exit_code == 78


def test_a_name_that_fits_several_lists_them(cards):
    with pytest.raises(ConfigError, match=r"3 USB Mic: Audio \(hw:10,0\), 6 USB Mic: Audio \(hw:1,0\), 9") as caught:
        resolve("usb", DEVICES, *cards)
    assert caught.value.exit_code == 78


def test_two_microphones_of_one_make_are_told_apart_by_serial_or_port(cards):
    with pytest.raises(ConfigError, match=r"card 1 \(serial A-17, port 1-1\.2\), card 10 \(serial none, port 1-1\.4\); add the"):
        resolve("usb:0d8c:0014", DEVICES, *cards)


def test_a_usb_microphone_is_found_under_whatever_number_its_card_has_now(cards):
    assert resolve("usb:2886:0018", DEVICES, *cards).place == (2, 0)
    for folder in cards:
        (folder / "card2").rename(folder / "card0.old")
        (folder / "card0").rename(folder / "card2")
        (folder / "card0.old").rename(folder / "card0")
    assert resolve("usb:2886:0018", DEVICES, *cards).place == (0, 0)


def test_a_microphone_that_another_program_has_open_says_which(cards):
    held(cards, 1, 0, os.getpid())
    held(cards, 10, 0, 0)
    assert resolve("hw:1", DEVICES, *cards).place == (1, 0)
    with pytest.raises(TryAgainError, match=rf"microphone hw:1: is in use by \S+ \(process {os.getpid()}\); end that program"):
        resolve("hw:1", DEVICES[:2], *cards)
    with pytest.raises(TryAgainError, match=r"hw:10: is not there"):
        resolve("hw:10", DEVICES[:1], *cards)


@pytest.mark.parametrize("wanted", ["", "default", "hw:1", "usb:2886:0018", "0"])
def test_a_computer_without_a_microphone_says_so(cards, wanted):
    with pytest.raises(TryAgainError, match="no input device"):
        resolve(wanted, [], *cards)


@pytest.mark.parametrize(("options", "listed"), [([], ""), (["--json"], "[]\n")])
def test_a_list_of_no_microphone_says_what_to_do_and_that_to_scripts_too(monkeypatch, options, listed):
    monkeypatch.setattr("detector.audio.devices.list_devices", lambda: [])
    result = CliRunner().invoke(cli, ["devices", *options])
    assert result.output == listed
    assert isinstance(result.exception, TryAgainError)
    assert "plug a microphone in" in result.exception.fix


def test_without_a_default_the_first_microphone_is_it(cards):
    assert resolve("default", DEVICES[:2], *cards) == DEVICES[0]


RATE = 100
LATE = int(LATE_S * RATE)
BUFFER_S = 0.2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 30), st.sampled_from([0, 0, 0, 5]), st.just(False)),  # on time, or late
            st.tuples(st.integers(1, 30), st.integers(1, 1000), st.just(True)),  # some are lost
            st.tuples(st.integers(1, 30), st.integers(41, 1000), st.just(False)),  # some are lost, and nobody says so
            st.just(None),  # the reader comes by
        ),
        max_size=60,
    )
)
def test_between_two_threads_every_sample_keeps_its_place_and_what_is_missing_is_told(steps):
    handover = Handover(RATE, 1, BUFFER_S)
    now_s, end, behind, heard, expected = handover.arrived_s, 0, 0, set(), 0
    for step in [*steps, None]:
        if step:
            count, late, lost = step
            now_s += (count + late) / RATE
            missing = late if lost or (end and late > 2 * BUFFER_S * RATE) else 0
            behind += missing + count
            handover.put(np.arange(end + missing, end + missing + count, dtype=np.float32)[:, None] / 2**20, lost, now_s)
            heard.update(range(end + missing, end + missing + count))
            end += missing + count
            continue
        before = set(range(expected, end)) & heard
        taken = set()
        while block := handover.take():
            indexes = range(block.first, block.first + len(block.samples))
            assert (block.samples * 2**20 == np.arange(indexes.start, indexes.stop)).all()
            assert block.first == expected if not block.reason else block.first > expected
            assert (block.reason == "overload") == (behind > LATE and not taken)
            expected = indexes.stop
            taken.update(indexes)
        assert taken == (before if behind <= LATE else {index for index in before if index >= end - LATE // 2})
        behind = 0


def test_a_reader_that_is_late_goes_on_with_what_is_new():
    handover = Handover(RATE, 1, BUFFER_S)
    for index in range(2 * LATE):
        handover.put(np.full((1, 1), index / 2**20, np.float32), False, handover.arrived_s + 1 / RATE)
    block = handover.take()
    assert (block.first, len(block.samples), block.reason) == (2 * LATE - LATE // 2, LATE // 2, "overload")
    handover.put(np.zeros((1, 1), np.float32), False, handover.arrived_s + 1 / RATE)
    assert handover.take().reason == ""


def test_the_reader_is_woken_as_soon_as_there_is_what_it_waits_for_and_not_before():
    handover = Handover(RATE, 1, BUFFER_S)
    assert handover.wait_s(3) > 0
    woken = []
    for _ in range(4):
        handover.put(np.zeros((1, 1), np.float32), False, handover.arrived_s + 1 / RATE)
        woken.append(handover.enough)
    assert woken == [False, False, True, True]
    assert handover.wait_s(4) == 0
    handover.take()
    assert handover.wait_s(1) > 0


def test_a_callback_may_bring_more_than_is_held():
    handover = Handover(RATE, 2, BUFFER_S)
    handover.put(np.zeros((int(3 * HELD_S * RATE), 2), np.float32), False, handover.arrived_s + 3 * HELD_S)
    assert handover.take().reason == "overload"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("detector.audio.devices.DEADLINE_S", 0.5)


def test_a_call_that_hangs_is_left_behind_and_one_that_fails_says_why(impatient):
    hanging = threading.Event()
    with pytest.raises(Hang, match=r"closing: hangs for more than 0\.5 s"):
        within("closing", hanging.wait)
    hanging.set()
    with pytest.raises(ZeroDivisionError):
        within("dividing", lambda: 1 / 0)
    assert within("adding", lambda: 1 + 1) == 2


def test_who_hangs_with_standard_error_muted_can_still_be_heard(capfd, impatient):
    hanging = threading.Event()

    def mute_and_hang():
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        hanging.wait()

    with pytest.raises(Hang):
        within("starting", mute_and_hang)
    os.write(2, b"heard")
    hanging.set()
    assert capfd.readouterr().err == "heard"
