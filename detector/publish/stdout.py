"""Events as JSON lines on standard output, when there is no broker."""

from __future__ import annotations

import sys
from typing import Any

from detector.errors import UrbandetectError
from detector.event import encode


class Stdout:
    """A publisher that prints events and nothing else: the output pipes into jq as it is."""

    failure: UrbandetectError | None = None
    dropped = 0

    def start(self) -> None:
        pass

    def event(self, event: dict[str, Any]) -> None:
        sys.stdout.write(encode(event) + "\n")
        sys.stdout.flush()

    def label(self, source: str, label: str, on: bool) -> None:
        pass

    def source(self, source: str, hearing: bool) -> None:
        pass

    def level(self, source: str, level: dict[str, Any]) -> None:
        pass

    def health(self, health: dict[str, Any]) -> None:
        pass

    def stop(self, patient: bool) -> None:
        pass
