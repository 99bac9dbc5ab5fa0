from __future__ import annotations

import threading

import pytest

from detector.audio.microphone import Device, resolve, within
from detector.errors import ConfigError, TryAgainError

NAMES = [
    "HDA Intel: Analog (hw:0,0)",
    "USB Mic: Audio (hw:10,0)",
    "USB Mic: Audio (hw:1,0)",
    "USB Mic: Audio (hw:1,2)",
    "pulse",
    "pulse 2",
    "default",
]
DEVICES = [Device(index * 3, name, 2, 48000, name == "default") for index, name in enumerate(NAMES)]


@pytest.fixture
def cards(tmp_path):
    """/proc/asound of a computer whose card 1 is called `Mic`."""
    (tmp_path / "card1").mkdir()
    (tmp_path / "Mic").symlink_to("card1")
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("hw:1", "USB Mic: Audio (hw:1,0)"),
        ("hw:1,0", "USB Mic: Audio (hw:1,0)"),
        ("hw:1,2", "USB Mic: Audio (hw:1,2)"),
        ("hw:10", "USB Mic: Audio (hw:10,0)"),
        ("hw:CARD=Mic", "USB Mic: Audio (hw:1,0)"),
        ("hw:CARD=Mic,2", "USB Mic: Audio (hw:1,2)"),
        ("hw:CARD=Mic,DEV=2", "USB Mic: Audio (hw:1,2)"),
        ("3", "USB Mic: Audio (hw:10,0)"),
        ("intel", "HDA Intel: Analog (hw:0,0)"),
        ("pulse", "pulse"),
        ("default", "default"),
        ("", "default"),
    ],
)
def test_a_microphone_is_resolved_exactly(cards, wanted, name):
    assert resolve(wanted, DEVICES, cards).name == name


@pytest.mark.parametrize("wanted", ["hw:2", "hw:1,1", "hw:CARD=Other", "hw:CARD=../x", "1", "99", "webcam"])
def test_a_microphone_that_is_not_there_may_come_back_and_the_others_are_listed(cards, wanted):
    with pytest.raises(TryAgainError, match=r"there are: 0 HDA Intel.*, 18 default") as caught:
        resolve(wanted, DEVICES, cards)
    assert caught.value.exit_code == 75


def test_a_name_that_fits_several_lists_them(cards):
    with pytest.raises(ConfigError, match=r"3 USB Mic: Audio \(hw:10,0\), 6 USB Mic: Audio \(hw:1,0\), 9") as caught:
        resolve("usb", DEVICES, cards)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("wanted", ["", "default", "hw:1", "0"])
def test_a_computer_without_a_microphone_says_so(cards, wanted):
    with pytest.raises(TryAgainError, match="no input device"):
        resolve(wanted, [], cards)


def test_without_a_default_the_first_microphone_is_it(cards):
    assert resolve("default", DEVICES[:2], cards) == DEVICES[0]


def test_a_call_that_hangs_is_left_behind_and_one_that_fails_says_why():
    hanging = threading.Event()
    with pytest.raises(TryAgainError, match=r"closing: hangs for more than 0\.05 s"):
        within(0.05, "closing", hanging.wait)
    hanging.set()
    with pytest.raises(ZeroDivisionError):
        within(5, "dividing", lambda: 1 / 0)
    assert within(5, "adding", lambda: 1 + 1) == 2
