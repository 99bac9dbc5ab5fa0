from dataclasses import replace

import numpy as np
import pytest
import soundfile

from detector.errors import InputError
from detector.model import Model
from trainer.data import read_audio
from trainer.day import DEMO, demo_bank, drift, failures, folder_bank, fresh, live
from trainer.streams import soundscape


def test_after_twenty_minutes_of_street_the_shipped_model_is_what_it_was(shipped_model):
    """The state does not drift, the probe's scores stay, silence closes every event, a gap makes none; bench/day.py takes a day."""
    model = Model(shipped_model, "cpu")
    rate = model.description.sample_rate
    probe = read_audio(DEMO / "street.ogg", rate)[: 20 * rate]
    thirds = list(live(model, demo_bank(rate), probe, 3, hour_s=400))
    assert failures(thirds) == []
    assert sum(third.events for third in thirds) > 0
    assert sum(third.gaps for third in thirds) >= 3
    assert np.abs(fresh(model, probe) - thirds[-1].probe).max() <= 0.02


def test_a_model_whose_state_grows_breaks_every_promise(loudness_model):
    """Its label `so_far` adds all peaks up and never falls; noise is loud to it."""
    model = Model(loudness_model, "cpu")
    thresholds = dict(model.description.thresholds)
    thresholds["loud"] = replace(thresholds["loud"], on=1e-3, off=1e-4)
    model.description = replace(model.description, thresholds=thresholds)
    bank = demo_bank(8000)
    hours = list(live(model, bank, read_audio(DEMO / "street.ogg", 8000)[:16000], 2, hour_s=400))
    assert drift(hours[1], hours[0])["h"] > 0.5
    said = failures(hours)
    for part in ("hour 2: the state h moved by", "hour 2: so_far open after 5 s", "loud in the first second after one of 1 gaps"):
        assert any(part in line for line in said)
    changed = replace(hours[1], probe=hours[0].probe + 0.03)
    assert any(
        line.startswith("hour 2: a score of the probe differs by 0.0300 from hour 1") for line in failures([hours[0], changed])
    )


def test_the_same_seed_is_the_same_day(loudness_model):
    model, bank = Model(loudness_model, "cpu"), demo_bank(8000)
    probe = np.zeros(8000, np.float32)
    one, other, third = (next(live(model, bank, probe, 1, seed, hour_s=200)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.quantiles["h"], other.quantiles["h"])
    assert (one.quantiles["h"] != third.quantiles["h"]).any()


def test_the_demo_recording_is_cut_into_its_events_and_what_lies_between():
    bank = demo_bank(8000)
    assert [len(label) for label in bank.sources] == [3, 1]
    assert [round(len(bank.clips[i]) / 8000, 2) for i in range(4)] == [4.35, 11.4, 1.7, 3.3]
    assert sum(len(bank.clips[i]) for i in range(4)) + sum(len(bank.beds[i]) for i in range(5)) == 60 * 8000


def test_folders_of_sounds_make_a_street(tmp_path, noises):
    for name in ("dogs", "horns"):
        (tmp_path / name).mkdir()
        for number in range(2):
            soundfile.write(tmp_path / name / f"{number}.wav", np.sin(np.arange(8000)), 8000)
    bank = folder_bank([tmp_path / "dogs", tmp_path / "horns"], [noises], 8000)
    assert bank.sources == (((0,), (1,)), ((2,), (3,)))
    assert {event.label for seed in range(9) for event in soundscape(bank, 80_000, [seed]).events} == {0, 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no audio file"):
        folder_bank([tmp_path / "empty"], [], 8000)
