from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.config import load_settings
from detector.errors import ConfigError
from detector.model import Threshold
from detector.profile import in_force, profiles

OWN = {"siren": Threshold(0.6, 0.3, 0.1, 0.5), "dog_bark": Threshold(0.5, 0.2, 0.1, 0.5)}
MONDAY = datetime(2027, 3, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    file = tmp_path_factory.mktemp("profile") / "detector.toml"

    def make(text):
        file.write_text(text)
        return profiles(load_settings(file)[0], OWN, str(file))

    return make


NIGHT = """
[thresholds.siren]
on = 0.7
[[profile]]
name = "night"
begins = "22:00"
ends = "07:00"
muted = ["dog_bark"]
[profile.thresholds.siren]
on = 0.9
"""


@pytest.mark.parametrize(
    ("hour", "minute", "name"), [(21, 59, ""), (22, 0, "night"), (23, 59, "night"), (0, 0, "night"), (6, 59, "night"), (7, 0, "")]
)
def test_a_night_is_in_force_from_evening_to_morning(made, hour, minute, name):
    found = in_force(made(NIGHT), MONDAY + timedelta(hours=hour, minutes=minute))
    assert found.name == name
    assert found.thresholds["siren"].on == (0.9 if name else 0.7)
    assert (found.thresholds["dog_bark"].on > 1) == bool(name)
    assert found.thresholds["siren"].min_off_s == OWN["siren"].min_off_s


def test_the_day_of_a_night_is_that_of_its_evening(made):
    weekend = made(NIGHT.replace("muted", 'days = ["fri", "sat"]\nmuted'))
    nights = [MONDAY + timedelta(hours=hour) for hour in range(7 * 24) if in_force(weekend, MONDAY + timedelta(hours=hour)).name]
    friday, sunday = MONDAY + timedelta(days=4), MONDAY + timedelta(days=6)
    assert nights[0] == friday + timedelta(hours=22)
    assert nights[-1] == sunday + timedelta(hours=6)
    assert len(nights) == 2 * 9


def test_the_first_profile_that_counts_is_the_one(made):
    text = NIGHT + NIGHT[NIGHT.index("[[profile]]") :].replace("night", "late").replace("22:00", "20:00")
    assert [in_force(made(text), MONDAY + timedelta(hours=hour)).name for hour in (19, 20, 22)] == ["", "late", "night"]


times = st.times().map(lambda moment: moment.strftime("%H:%M"))


@given(begins=times, ends=times, minutes=st.integers(0, 7 * 24 * 60))
def test_a_profile_and_its_complement_share_the_week(made, begins, ends, minutes):
    if begins == ends:
        return
    one = f'[[profile]]\nname = "one"\nbegins = "{begins}"\nends = "{ends}"\n'
    other = f'[[profile]]\nname = "other"\nbegins = "{ends}"\nends = "{begins}"\n'
    one, other, _ = made(one + other)
    now = MONDAY + timedelta(minutes=minutes)
    assert one.counts(now) != other.counts(now)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"22:00"', '"24:00"', "profile 'night': begins = '24:00'; a time is 22:00"),
        ('"07:00"', '"7"', "profile 'night': ends = '7'; a time is 22:00"),
        ('"07:00"', '"22:00"', "begins and ends at 22:00"),
        ('["dog_bark"]', '["dog"]', "profile night: muted: the model has no label 'dog'; it has siren, dog_bark"),
        ("on = 0.9", "on = 1.9", "profile night: thresholds.siren: on = 1.9"),
        ("muted", 'days = ["monday"]\nmuted', "profile 'night': 'monday' is no day; days are mon, tue"),
        ('begins = "22:00"', "", "needs begins"),
    ],
)
def test_a_wrong_profile_is_named(made, old, new, said):
    with pytest.raises(ConfigError) as caught:
        made(NIGHT.replace(old, new))
    assert said in str(caught.value)
