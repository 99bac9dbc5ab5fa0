from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.audio.stillness import Stillness


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, -0.5]), max_size=5), max_size=20))
def test_it_is_known_for_how_many_samples_nothing_has_moved(blocks):
    stillness = Stillness()
    for block in blocks:
        stillness.hear(np.array(block, np.float32))
    heard = [value for block in blocks for value in block]
    still = len(heard) - max((i for i in range(1, len(heard)) if heard[i] != heard[i - 1]), default=0)
    assert stillness.samples == still
