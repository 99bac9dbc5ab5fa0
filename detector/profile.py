"""What is told when: profiles by local time, each with its own thresholds and labels that are not told at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time

from detector.config import DAYS, ProfileSettings, Settings, thresholds
from detector.errors import ConfigError
from detector.model import Threshold

NEVER = 2.0
"""No score reaches it."""


@dataclass(frozen=True)
class Profile:
    """Thresholds that count from one local time to another. begins > ends: over midnight, and the day is that of the evening; days:
    0 is Monday."""

    name: str
    begins: time
    ends: time
    days: frozenset[int]
    thresholds: Mapping[str, Threshold]

    @property
    def muted(self) -> list[str]:
        """Labels that are not told at all."""
        return [label for label, threshold in self.thresholds.items() if threshold.on == NEVER]

    def counts(self, now: datetime) -> bool:
        """Whether it is in force at a local time."""
        clock, today = now.time(), now.weekday()
        if self.begins < self.ends:
            return self.begins <= clock < self.ends and today in self.days
        return (clock >= self.begins and today in self.days) or (clock < self.ends and (today - 1) % 7 in self.days)


def profiles(settings: Settings, own: Mapping[str, Threshold], where: str) -> list[Profile]:
    """The settings' profiles over the model's own thresholds; the last one counts when no other does.

    Raises ConfigError for an unknown label or impossible levels.
    """
    day = thresholds(settings, own, where)
    made = [_profile(one, settings, day, f"{where}, profile {one.name}") for one in settings.profile]
    return [*made, Profile("", time(0), time(0), frozenset(range(7)), day)]


def in_force(among: Sequence[Profile], now: datetime) -> Profile:
    """The first that counts at a local time, else the last."""
    return next((profile for profile in among if profile.counts(now)), among[-1])


def _profile(one: ProfileSettings, settings: Settings, day: Mapping[str, Threshold], where: str) -> Profile:
    levels = thresholds(replace(settings, thresholds=one.thresholds), day, where)
    for label in one.muted:
        if label not in day:
            raise ConfigError(where, f"muted: the model has no label {label!r}", f"it has {', '.join(day)}")
        levels[label] = replace(levels[label], on=NEVER)
    days = frozenset(DAYS.index(day) for day in one.days) or frozenset(range(7))
    return Profile(one.name, time.fromisoformat(one.begins), time.fromisoformat(one.ends), days, levels)
