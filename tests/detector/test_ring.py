from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.audio.ring import Ring


@given(st.integers(1, 50), st.lists(st.integers(0, 120), max_size=30))
def test_any_split_of_writes_gives_the_same_newest_samples(capacity, sizes):
    ring, whole = Ring(capacity), np.arange(sum(sizes), dtype=np.float32)
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        ring.write(whole[start : start + size])
        for begin in range(max(0, ring.end - capacity), ring.end + 1):
            assert (ring.view(begin, ring.end) == whole[begin : ring.end]).all()
    assert ring.end == len(whole)


def test_a_window_is_a_view_not_a_copy():
    ring = Ring(10)
    ring.write(np.ones(8, np.float32))
    ring.write(np.ones(8, np.float32))
    assert ring.view(7, 15).base is not None


@pytest.mark.parametrize(("start", "stop"), [(5, 12), (-1, 3), (18, 26), (20, 19)])
def test_samples_that_are_not_held_are_refused(start, stop):
    ring = Ring(10)
    ring.write(np.zeros(25, np.float32))
    with pytest.raises(IndexError, match="are not held"):
        ring.view(start, stop)


def test_it_holds_exactly_its_capacity():
    ring = Ring(10)
    ring.write(np.zeros(25, np.float32))
    assert ring.holds(15)
    assert not ring.holds(14)


@given(st.integers(0, 40))
def test_lost_samples_move_the_index_on_and_become_silence(count):
    ring = Ring(20)
    ring.write(np.ones(15, np.float32))
    ring.skip(count)
    assert ring.end == 15 + count
    assert not ring.view(max(15, ring.end - 20), ring.end).any()
    ring.write(np.ones(3, np.float32))
    assert ring.view(ring.end - 3, ring.end).all()


@given(st.integers(1, 30), st.integers(0, 80), st.integers(1, 90))
def test_growing_keeps_what_is_held_and_holds_more(capacity, written, wanted):
    ring, sound = Ring(capacity), np.arange(200, dtype=np.float32)
    ring.write(sound[:written])
    ring.grow(wanted)
    held = min(capacity, written)
    assert ring.capacity == max(capacity, wanted)
    assert (ring.view(written - held, written) == sound[written - held : written]).all()
    ring.write(sound[written : written + wanted])
    assert (ring.view(written, written + wanted) == sound[written : written + wanted]).all()
