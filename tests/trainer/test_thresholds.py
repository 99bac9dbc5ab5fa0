import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.model import Threshold
from detector.tracker import Tracker
from trainer.streams import Event
from trainer.thresholds import HOLDS_S, LOWEST, ON, Setting, choose, hears

HOP, RATE = 800, 8000  # rows of 0.1 s
LABELS = ("a", "b")
ROWS_AN_HOUR = 36_000


def told(scores, thresholds):
    """The events a daemon tells of this table, by label."""
    tracker = Tracker(LABELS, thresholds, HOP, RATE)
    changes = tracker.update(0, scores, np.zeros(len(scores))) + tracker.close(len(scores) * HOP)
    return {label: [c for c in changes if c.phase == "end" and c.label == label] for label in LABELS}


def hum(seed, tables=4, rows=600, spread=1.2):
    """Scores that wander about 0.2 and now and then come near 1."""
    random = np.random.default_rng(seed)
    wandering = random.standard_normal((tables, rows + 4, len(LABELS)))
    smooth = sum(wandering[:, k : rows + k] for k in range(4)) / 2
    return list((1 / (1 + np.exp(1.5 - spread * smooth))).astype(np.float32))


def loud(rows, *spans, level=0.999):
    """Scores of one soundscape in which label a is loud over these spans of rows, and the events that are there."""
    scores = np.full((rows, len(LABELS)), 0.01, np.float32)
    for first, end in spans:
        scores[first:end, 0] = level
    return scores, [Event(0, first * HOP, end * HOP, 0.0) for first, end in spans]


ways = st.builds(Setting, st.sampled_from([0.0, 0.15, 0.5]), st.sampled_from([0.0, 0.3, 1.2]), st.sampled_from([1.0, 0.5, 0.1]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.0, 60.0), ways)
def test_the_tracker_tells_no_more_false_events_in_the_quiet_sound_than_the_target_allows(seed, allowed, way):
    quiet = hum(seed)
    hours = sum(map(len, quiet)) / ROWS_AN_HOUR
    chosen = choose(LABELS, HOP, RATE, quiet, [], len(LABELS) * allowed / hours, {label: [way] for label in LABELS})
    for label in LABELS:
        false = sum(len(told(table, chosen.thresholds)[label]) for table in quiet)
        assert false <= allowed
        assert chosen.expected[label].counted == pytest.approx(false / hours)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 2000), min_size=2, max_size=4), ways)
def test_a_lower_target_never_gives_a_lower_threshold(seed, targets, way):
    quiet = hum(seed, tables=2)
    found = [choose(LABELS, HOP, RATE, quiet, [], each, {label: [way] for label in LABELS}) for each in sorted(targets)]
    for label in LABELS:
        levels = [one.thresholds[label].on for one in found]
        assert levels == sorted(levels, reverse=True)
        assert min(levels) >= LOWEST
        assert max(levels) <= ON[-1]


@pytest.mark.parametrize("slope", [0.7, 1.0, 1.2])
def test_a_rate_far_below_one_event_in_the_quiet_sound_is_told_from_the_tail(slope):
    """Peaks every 10 s whose excess in logits is exponential: how many of them exceed a level is known."""
    random = np.random.default_rng(3)
    hours, share, way = 1.0, 0.2, {label: [Setting(0.0, 0.6, 0.5)] for label in LABELS}
    ratios = []
    for _ in range(20):
        scores = np.full((int(hours * ROWS_AN_HOUR), len(LABELS)), 1e-4, np.float32)
        peaks = scores[::100]
        peaks[:] = 1 / (1 + np.exp(5 - random.exponential(slope, peaks.shape)))
        chosen = choose(LABELS, HOP, RATE, [scores], [], share * len(LABELS), way)
        for label in LABELS:
            on = chosen.thresholds[label].on
            ratios.append(360 * np.exp(-(np.log(on / (1 - on)) + 5) / slope) / share)
            assert chosen.expected[label].extrapolated <= share or on == ON[-1]
    within = np.mean([1 / 6 < ratio < 6 for ratio in ratios])
    assert 0.5 < np.median(ratios) < 1.6
    assert within > 0.8
    assert chosen.reach == pytest.approx(5)


def test_sound_in_which_nothing_scores_at_all_gives_the_lowest_threshold():
    chosen = choose(LABELS, HOP, RATE, [np.zeros((100, 2), np.float32)], [], 1.0)
    assert all(LOWEST <= threshold.on < LOWEST + 0.005 for threshold in chosen.thresholds.values())
    assert chosen.expected["a"].extrapolated == 0
    assert "0 counted in 0.00 h of quiet sound" in chosen.said


def test_a_network_that_shouts_into_silence_gets_the_highest_threshold_and_it_is_said_what_to_expect():
    quiet = np.zeros((600, 2), np.float32)
    quiet[::50] = 1.0
    chosen = choose(LABELS, HOP, RATE, [quiet], [], 1.0)
    assert {threshold.on for threshold in chosen.thresholds.values()} == {ON[-1]}
    assert chosen.expected["a"].counted > 100
    assert chosen.expected["a"].extrapolated > 100


def test_a_short_sound_is_told_at_once_and_one_with_brief_false_twins_is_held():
    short, lasting = loud(600, (50, 51), (200, 201), (400, 401)), loud(600, (50, 150), (300, 400))
    quiet = np.full((6000, 2), 0.01, np.float32)
    assert choose(LABELS, HOP, RATE, [quiet], [short]).thresholds["a"].min_on_s == HOLDS_S[0]
    assert choose(LABELS, HOP, RATE, [quiet], [lasting]).thresholds["a"].min_on_s == HOLDS_S[0]
    quiet[::100, 0] = 0.9999
    held = choose(LABELS, HOP, RATE, [quiet], [lasting])
    assert held.thresholds["a"].min_on_s > 0.1
    assert held.expected["a"].heard.recall == 1
    assert held.expected["b"].heard is None


def test_a_lasting_sound_with_holes_is_told_in_one_piece():
    scores, events = loud(800, (100, 700), level=0.9)
    scores[110:700:20, 0] = 0.3
    scores[105:700:40, 0] = 0.01
    for at in range(120, 700, 60):
        scores[at : at + 8, 0] = 0.01
    chosen = choose(LABELS, HOP, RATE, [np.zeros((6000, 2), np.float32)], [(scores, events)], 1.0)
    assert chosen.thresholds["a"].min_off_s > 0.8
    assert len(told(scores, chosen.thresholds)["a"]) == 1
    assert chosen.expected["a"].heard.f1 == 1


def test_pieces_late_messages_and_events_that_stay_open_cost_the_f_score():
    way = {label: Threshold(0.5, 0.25, 0.0, 0.3) for label in LABELS}
    scores, events = loud(200, (50, 100))
    assert hears(LABELS, HOP, RATE, [(scores, events)], way)["a"].f1 == 1
    assert hears(LABELS, HOP, RATE, [(scores, events)], way)["b"] is None
    scores[70:80, 0] = 0
    pieces = hears(LABELS, HOP, RATE, [(scores, events)], way)["a"]
    assert (pieces.recall, pieces.f1) == (1, pytest.approx(2 / 3))
    scores[50:, 0] = 1
    assert hears(LABELS, HOP, RATE, [(scores, events)], way)["a"].f1 == 0
    late = way | {"a": Threshold(0.5, 0.25, 6.0, 0.3)}
    assert hears(LABELS, HOP, RATE, [(scores, events)], late)["a"].recall == 0
