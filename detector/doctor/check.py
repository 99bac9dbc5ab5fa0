"""One line of what the doctor says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from detector.errors import UrbandetectError, printable

State = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """name: what was looked at; state: skip where it does not apply or was not reached; what: what was found; fix: what to do."""

    name: str
    state: State
    what: str
    fix: str = ""

    def __post_init__(self) -> None:
        for key in ("what", "fix"):  # a broker or a card may call itself anything
            object.__setattr__(self, key, printable(getattr(self, key)))


def failed(name: str, error: UrbandetectError) -> Check:
    """An error of ours as a line of the doctor's."""
    return Check(name, "fail", f"{error.where}: {error.what}", error.fix)


def skipped(names: Iterable[str], why: str) -> Iterator[Check]:
    """Lines that say why there was nothing to look at."""
    return (Check(name, "skip", why) for name in names)
