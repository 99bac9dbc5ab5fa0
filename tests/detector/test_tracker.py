from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.model import Threshold
from detector.tracker import Tracker

HOP = RATE = 100
LABELS = ("siren", "dog_bark")


def tracker(on=0.5, off=0.3, min_on_s=0.0, min_off_s=0.0, update_s=0.0):
    return Tracker(LABELS, dict.fromkeys(LABELS, Threshold(on, off, min_on_s, min_off_s)), HOP, RATE, update_s)


def rows(*sirens):
    """Score rows for the first label; the second hears nothing. A row lasts a second."""
    return np.array([[score, 0] for score in sirens], np.float32)


def told(t, scores, first=0, closed_at=None):
    scores = np.asarray(scores, np.float32).reshape(-1, len(LABELS))
    changes = t.update(first, scores, np.ones(len(scores)))
    return changes + (t.close(closed_at) if closed_at is not None else [])


def spans(changes):
    return [(change.onset // HOP, change.offset // HOP) for change in changes if change.phase == "end"]


score_rows = st.lists(st.tuples(*[st.sampled_from([0, 0.1, 0.29, 0.3, 0.4, 0.49, 0.5, 0.7, 1])] * 2), max_size=60)
trackers = st.fixed_dictionaries(
    {
        "on": st.sampled_from([0.5, 0.7]),
        "off": st.sampled_from([0.1, 0.3, 0.5]),
        "min_on_s": st.integers(0, 4),
        "min_off_s": st.integers(0, 4),
        "update_s": st.integers(0, 3),
    }
)


@given(trackers, score_rows)
def test_every_start_has_its_end_and_each_label_has_one_event_at_a_time(settings, scores):
    changes = told(tracker(**settings), scores, closed_at=len(scores) * HOP)
    for label in LABELS:
        mine = [change for change in changes if change.label == label]
        phases = [phase for phase, _ in groupby(change.phase for change in mine if change.phase != "update")]
        assert phases == ["start", "end"] * (len(phases) // 2)
        assert sum(change.phase == "start" for change in mine) == sum(change.phase == "end" for change in mine)
        for change in mine:
            if change.phase == "start":
                onset = change.onset
            assert change.onset == onset < change.offset <= len(scores) * HOP
        ends = [change for change in mine if change.phase == "end"]
        assert all(before.offset <= after.onset for before, after in pairwise(ends))


@given(trackers, score_rows, st.lists(st.integers(0, 60), max_size=5))
def test_any_split_of_the_rows_into_updates_tells_the_same(settings, scores, cuts):
    whole = told(tracker(**settings), scores, closed_at=len(scores) * HOP)
    t, parts = tracker(**settings), []
    bounds = [0, *sorted(min(cut, len(scores)) for cut in cuts), len(scores)]
    for start, stop in pairwise(bounds):
        parts += told(t, scores[start:stop], start * HOP)
    assert parts + t.close(len(scores) * HOP) == whole


@given(trackers, score_rows)
def test_an_event_lasts_from_its_first_row_at_on_to_its_last_row_at_off_and_scores_its_peak(settings, scores):
    for change in told(tracker(**settings), scores, closed_at=len(scores) * HOP):
        column = np.array(scores, np.float32)[change.onset // HOP : change.offset // HOP, LABELS.index(change.label)]
        assert column[0] >= np.float32(settings["on"])
        assert change.score == column.max()
        assert change.score_mean == pytest.approx(column.mean()) or change.phase == "update"
        assert change.threshold == settings["on"]
        if change.phase == "end":
            assert column[-1] >= np.float32(settings["off"])
            assert len(column) >= settings["min_on_s"]


def test_scores_between_the_levels_keep_an_event_open_but_open_none():
    assert spans(told(tracker(), rows(0.4, 0.4, 0.6, 0.4, 0.4, 0.1, 0.4))) == [(2, 5)]


def test_an_event_shorter_than_min_on_s_is_none():
    t = tracker(min_on_s=3)
    assert told(t, rows(0.9, 0.9, 0, 0.9, 0.9, 0)) == []
    assert spans(told(t, rows(0.9, 0.9, 0.9, 0))) == [(0, 3)]


def test_a_pause_shorter_than_min_off_s_does_not_end_an_event():
    assert spans(told(tracker(min_off_s=3), rows(0.9, 0, 0, 0.9, 0, 0, 0, 0.9))) == [(0, 4)]


def test_the_pause_within_an_event_counts_in_its_means_and_the_one_after_it_does_not():
    t = tracker(min_off_s=2)
    changes = t.update(0, rows(1, 0, 1, 0, 0), [4, 1, 4, 9, 9])
    assert (changes[-1].score_mean, changes[-1].mean_square) == (pytest.approx(2 / 3), 3)


def test_close_ends_what_is_open_and_forgets_what_was_about_to_open():
    t = tracker(min_on_s=2)
    told(t, np.array([[0.9, 0], [0.9, 0.9]]))
    (end,) = t.close(150)
    assert (end.label, end.onset, end.offset) == ("siren", 0, 150)
    assert t.close(150) == []
    assert told(t, np.array([[0.1, 0.9]]), 200) == []


def test_a_lasting_event_is_told_again_every_update_s_under_its_onset():
    changes = told(tracker(update_s=2), rows(*[0.9] * 7, 0))
    assert [(change.phase, change.offset // HOP) for change in changes] == [
        ("start", 1),
        ("update", 3),
        ("update", 5),
        ("update", 7),
        ("end", 7),
    ]
    assert {change.onset for change in changes} == {0}


def test_a_score_that_is_not_a_number_opens_nothing():
    assert told(tracker(), rows(float("nan"), 0.1)) == []
    assert told(tracker(min_on_s=2), rows(0.9, float("nan"), 0.1)) == []


@given(
    sirens=st.lists(st.sampled_from([0.0, 0.9]), max_size=80),
    cooldown=st.integers(0, 10),
    min_on=st.integers(1, 3),
)
def test_after_an_event_none_of_its_label_begins_for_its_cooldown(sirens, cooldown, min_on):
    levels = dict.fromkeys(LABELS, Threshold(0.5, 0.3, float(min_on), 1.0, float(cooldown)))
    t = Tracker(LABELS, levels, HOP, RATE)
    cool = spans(told(t, rows(*sirens), closed_at=len(sirens) * HOP))
    assert all(after[0] - before[1] >= max(1, cooldown) for before, after in pairwise(cool))
    if not cooldown:
        assert cool == spans(told(tracker(min_on_s=min_on, min_off_s=1.0), rows(*sirens), closed_at=len(sirens) * HOP))


def test_an_event_s_levels_are_those_of_its_own_rows_with_and_without_weighting():
    t = tracker(min_off_s=2)
    changes = t.update(0, rows(1, 0, 1, 0, 0), [4, 1, 4, 9, 9], [2, 0.5, 0.5, 7, 7])
    assert [(c.phase, c.mean_square_a) for c in changes] == [("start", 2), ("end", 1)]
