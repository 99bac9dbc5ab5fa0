"""Which sound cards the kernel knows now, whatever PortAudio has listed: whether to look again is worth its price."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from detector.audio import devices
from detector.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """A card by its number, its short id and its name, as the kernel lists them in /proc/asound/cards."""

    number: int
    id: str
    name: str


def cards(folder: Path | None = None) -> frozenset[Card]:
    """Those there are now; none where this is not Linux. folder: see devices.CARDS."""
    try:
        listing = ((folder or devices.CARDS) / "cards").read_text(errors="replace")
    except OSError:
        return frozenset()
    found = re.findall(r"^ *(\d+) \[(.+?) *\]: .*? - (.*)$", listing, re.MULTILINE)
    return frozenset(Card(int(number), short, name) for number, short, name in found)


def may_be(wanted: str, new: Set[Card], folder: Path | None = None, usb: Path | None = None) -> bool:
    """Whether one of these cards may be the microphone that a `device` names. folder, usb: see devices.CARDS and USB."""
    if not new:
        return False
    if wanted.startswith(("hw:", "usb:")):
        try:
            place = devices.place(wanted, folder or devices.CARDS, usb or devices.USB)
        except ConfigError:
            return False
        return place is not None and any(card.number == place[0] for card in new)
    name = wanted.partition(":")[0].strip().casefold()
    return name in ("", "default") or name.isdigit() or any(name in card.name.casefold() for card in new)
