"""Events as JSON lines on standard output, when there is no broker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from detector.config import MqttSettings
from detector.errors import UrbandetectError
from detector.event import encode


class Stdout:
    """A publisher that prints events and nothing else: the output pipes into jq as it is."""

    failure: UrbandetectError | None = None

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

    def threshold(self, source: str, label: str, on: float) -> None:
        pass

    def wishes(self) -> dict[tuple[str, str], float]:
        return {}

    def use(self, settings: MqttSettings) -> None:
        pass

    def status(self) -> str:
        return ""

    def facts(self) -> dict[str, Any]:
        return {}

    def hangs(self) -> bool:
        return False

    def stop(self, patient: Callable[[], bool]) -> None:
        pass
