"""With several microphones one that comes as a card PortAudio has not seen is heard, for one short gap of the others."""

from __future__ import annotations

import json
import sys
import time

import pytest
from parts import Card

from detector.audio.cards import Card as Listed
from detector.audio.cards import cards, may_be

RUN = """
from pathlib import Path
from detector import daemon, ear
from detector.audio import devices
ear.REOPEN_S, daemon.RESCAN_S = (0.2, 0.5), (1.5, 3600.0)
devices.CARDS = Path("asound")
devices.resolve.__defaults__ = Path("asound"), Path("sound")
from detector.cli import main
main()
"""
LISTING = """ 0 [PCH            ]: HDA-Intel - HDA Intel PCH
                      HDA Intel PCH at 0xf7f30000 irq 31
 2 [Device         ]: USB-Audio - USB Audio Device
                      C-Media Electronics Inc. USB Audio Device at usb-0000:00:14.0-2, full speed
"""
YARD, GATE, OTHER = Card("Yard Mic", 1), Card("Gate Mic", 2), Card("Some Headset", 3)
SAFE_S = 2.0
"""Several times as long as it takes to look for a microphone again, here."""


@pytest.fixture
def plug(microphone, tmp_path):
    """These cards are there now, for ALSA and for the kernel."""
    (tmp_path / "asound").mkdir()

    def now(*plugged, ready=True):
        if ready:
            microphone.plug(*plugged)
        listing = "".join(f" {card.number} [C{card.number:<14}]: USB-Audio - {card.name}\n   long\n" for card in plugged)
        (tmp_path / "asound" / "new").write_text(listing)
        (tmp_path / "asound" / "new").replace(tmp_path / "asound" / "cards")

    return now


def test_the_kernels_list_is_read_as_it_is(tmp_path):
    (tmp_path / "cards").write_text(LISTING)
    assert cards(tmp_path) == {Listed(0, "PCH", "HDA Intel PCH"), Listed(2, "Device", "USB Audio Device")}
    assert cards(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("device", "fits"),
    [
        *(("USB Audio Device: - (hw:2,0)", True), ("usb audio", True), ("hw:2", True), ("hw:2,0", True), ("hw:0", False)),
        *(("3", True), ("", True), ("default", True), ("Street Mic", False), ("hw:CARD=Device", True), ("hw:CARD=PCH", False)),
        ("hw:nonsense", False),
    ],
)
def test_only_a_new_card_that_may_be_the_one_is_worth_it(tmp_path, device, fits):
    (tmp_path / "Device").symlink_to("card2")
    (tmp_path / "PCH").symlink_to("card0")
    new = {Listed(2, "Device", "USB Audio Device")}
    assert may_be(device, new, tmp_path, tmp_path) is fits
    assert not may_be(device, frozenset(), tmp_path, tmp_path)


def test_a_second_microphone_that_comes_later_is_heard_and_the_first_has_a_gap_for_each_look(
    microphone, bursts, broker, start, loudness_model, plug, tmp_path, events
):
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    sources = "".join(f'[[source]]\nname = "{name.lower()}"\ndevice = "{name} Mic: Audio"\n' for name in ("Yard", "Gate"))
    (tmp_path / "detector.toml").write_text(f'node = "street"\n{sources}')
    plug(YARD)
    broker.start()
    witness = broker.witness()
    options = ["--mqtt", f"127.0.0.1:{broker.port}", "--model", loudness_model]
    env = {"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}
    run = start(sys.executable, "-c", RUN, "run", *options, env=env)
    heard = witness.wait_for(lambda line: '"source":"yard"' in line and '"phase":"end"' in line)

    plug(YARD, OTHER)  # somebody else's: nothing is closed for it
    time.sleep(SAFE_S)
    assert not any(line.endswith("yard/status no_audio") for line in witness.lines[heard:])

    plug(YARD, OTHER, GATE, ready=False)  # the kernel lists it, and it cannot be opened yet
    run.wait_for_error("gate, whose card may have come")
    closed = witness.wait_for(lambda line: line.endswith("yard/status no_audio"), after=heard)
    witness.wait_for(lambda line: line.endswith("yard/status online"), after=closed)  # it was looked for in vain
    plug(YARD, OTHER, GATE)
    begun_s = time.monotonic()
    gate = witness.wait_for(lambda line: '"source":"gate"' in line and '"phase":"end"' in line, after=heard)
    print(f"heard {time.monotonic() - begun_s:.1f} s after it came")
    opened = witness.wait_for(lambda line: line.endswith("yard/status online"), after=closed)
    again = witness.wait_for(lambda line: '"source":"yard"' in line and '"phase":"end"' in line, after=opened)
    assert events(witness.lines[again : again + 1])[0]["session"] != events(witness.lines[heard : heard + 1])[0]["session"]
    assert gate > closed
    time.sleep(SAFE_S)
    assert sum(line.endswith("yard/status no_audio") for line in witness.lines[heard:]) == 2
    health = [json.loads(line.split(" ", 2)[2])["sources"] for line in witness.lines if "/health " in line]
    assert health[-1]["yard"]["gaps"] == {"rescan": 2}
    assert [health[-1][name]["hearing"] for name in ("yard", "gate")] == [True, True]
    assert run.process.poll() is None
