from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.audio.level import SILENCE_DBFS, Meter, dbfs


def test_a_full_scale_sine_is_0_dbfs():
    sine = np.sin(2 * np.pi * np.arange(48000) * 1000 / 48000)
    assert dbfs(float(np.mean(sine**2))) == pytest.approx(0, abs=1e-9)


def test_half_the_amplitude_is_6_db_less():
    assert dbfs(0.5 / 4) == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("mean_square", [0.0, 1e-300, 5e-324])
def test_silence_is_a_number_json_can_hold(mean_square):
    assert dbfs(mean_square) == SILENCE_DBFS == -120


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, -0.5]), max_size=5), max_size=20))
def test_a_meter_knows_for_how_many_samples_nothing_has_moved(blocks):
    meter = Meter()
    for block in blocks:
        meter.hear(np.array(block, np.float32))
    heard = [value for block in blocks for value in block]
    still = len(heard) - max((i for i in range(1, len(heard)) if heard[i] != heard[i - 1]), default=0)
    assert meter.still_samples == still


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), min_size=1, max_size=5))
def test_a_meters_level_is_that_of_all_samples_since_it_was_read(blocks):
    meter = Meter()
    meter.hear(np.ones(100, np.float32))
    meter.take()
    for block in blocks:
        meter.hear(np.array(block, np.float32))
    heard = np.concatenate([np.array(block, np.float32) for block in blocks])
    assert meter.take() == pytest.approx(dbfs(float(np.mean(heard.astype(np.float64) ** 2))), abs=1e-3)
    assert meter.take() == SILENCE_DBFS
