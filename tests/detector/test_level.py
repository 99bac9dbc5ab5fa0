from __future__ import annotations

import numpy as np
import pytest

from detector.audio.level import SILENCE_DBFS, dbfs


def test_a_full_scale_sine_is_0_dbfs():
    sine = np.sin(2 * np.pi * np.arange(48000) * 1000 / 48000)
    assert dbfs(float(np.mean(sine**2))) == pytest.approx(0, abs=1e-9)


def test_half_the_amplitude_is_6_db_less():
    assert dbfs(0.5 / 4) == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("mean_square", [0.0, 1e-300, 5e-324])
def test_silence_is_a_number_json_can_hold(mean_square):
    assert dbfs(mean_square) == SILENCE_DBFS == -120
