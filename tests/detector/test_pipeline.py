from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.audio.source import Block
from detector.audio.weighting import AWeighting
from detector.model import Model
from detector.pipeline import Pipeline

RATE, HOP = 8000, 800


@pytest.fixture(scope="module")
def loudness(loudness_model):
    return Model(loudness_model, "cpu")


@pytest.fixture(scope="module")
def shipped(shipped_model):
    return Model(shipped_model, "cpu")


class Recording:
    """A model that also keeps the rows it gave, per call."""

    def __init__(self, model):
        self.description, self.stream_axes = model.description, model.stream_axes
        self.fresh_state, self._step = model.fresh_state, model.step
        self.rows = []

    def step(self, audio, state):
        scores, state = self._step(audio, state)
        self.rows.append(scores)
        return scores, state


def feed(pipeline, slot, samples, sizes=(), first=0):
    """Samples in blocks of these sizes, the last one what is left; all changes."""
    changes = []
    for block in np.split(samples, np.cumsum(sizes)):
        changes += pipeline.feed(slot, Block(block, first, 0.0))
        changes += [change for _, change in pipeline.advance()]
        first += len(block)
    return changes


def heard(model, samples, rate, sizes=()):
    """Score rows and changes of one stream from its begin to its end."""
    recording = Recording(model)
    pipeline = Pipeline(recording, 1)
    pipeline.begin(0, rate)
    changes = feed(pipeline, 0, samples, sizes) + pipeline.finish(0)
    return np.concatenate([np.zeros((0, len(model.description.labels))), *(rows[0] for rows in recording.rows)]), changes


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8000, 16000, 44100, 48000]), st.integers(0, 100_000), st.lists(st.integers(0, 9000), max_size=5))
def test_it_says_to_the_sample_how_much_of_a_source_the_next_hop_takes(loudness, rate, first, sizes):
    pipeline = Pipeline(loudness, 2)
    pipeline.begin(1, rate, first)
    for size in sizes:
        pipeline.feed(1, Block(np.zeros(size, np.float32), first, 0.0))
        pipeline.advance()
        first += size
    missing = pipeline.missing(1)
    assert 0 < missing <= rate * HOP / RATE + 0.05 * rate
    pipeline.feed(1, Block(np.zeros(missing - 1, np.float32), first, 0.0))
    assert not pipeline.ready()
    pipeline.feed(1, Block(np.zeros(1, np.float32), first + missing - 1, 0.0))
    assert pipeline.ready()


def ends(changes, hop=HOP):
    return [(change.onset / hop, change.offset / hop) for change in changes if change.phase == "end"]


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([22050, 48000]), st.lists(st.integers(0, 30000), max_size=6))
def test_any_split_of_the_sound_into_blocks_gives_the_same_scores_of_the_shipped_model(shipped, rate, sizes):
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 0.1, 2 * rate).astype(np.float32) * rng.uniform(0, 1, 2 * rate).astype(np.float32)
    whole, _ = heard(shipped, samples, rate)
    parts, _ = heard(shipped, samples, rate, sizes)
    assert len(whole) == -(-2 * 22050 // shipped.description.hop)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30000), max_size=8))
def test_any_split_of_the_sound_into_blocks_gives_the_same_events(loudness, bursts, sizes):
    samples = bursts(3.05, (0.3, 1.0), (1.5, 1.7), (2.9, 3.05))
    _, changes = heard(loudness, samples, RATE, sizes)
    assert ends(changes) == [(3, 10), (15, 17), (29, 30.5)]
    assert changes == heard(loudness, samples, RATE)[1]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 99))
def test_many_streams_in_one_batch_hear_what_each_hears_alone(shipped, seed):
    rng = np.random.default_rng(seed)
    sounds = [rng.normal(0, rng.uniform(0.001, 0.3), rng.integers(20000, 60000)).astype(np.float32) for _ in range(3)]
    low = {label: replace(own, on=0.05, off=0.04) for label, own in shipped.description.thresholds.items()}
    together, alone = [], []
    pipeline = Pipeline(shipped, 3, low)
    for slot in range(3):
        pipeline.begin(slot, 22050)
    for at in range(0, 60000, 5000):
        for slot, sound in enumerate(sounds):
            if at < len(sound):
                together += [(slot, change) for change in pipeline.feed(slot, Block(sound[at : at + 5000], at, 0.0))]
        together += pipeline.advance()
    for slot, sound in enumerate(sounds):
        together += [(slot, change) for change in pipeline.finish(slot)]
        single = Pipeline(shipped, 1, low)
        single.begin(0, 22050)
        alone += [(slot, change) for change in feed(single, 0, sound) + single.finish(0)]

    def facts(told):
        return sorted((slot, change.label, change.phase, change.onset, change.offset) for slot, change in told)

    assert facts(together) == facts(alone)


def test_a_block_lost_in_the_middle_closes_the_event_at_the_last_good_sample(loudness, bursts):
    pipeline = Pipeline(loudness, 1)
    pipeline.begin(0, RATE)
    sound = bursts(4.0, (0.5, 4.0))
    feed(pipeline, 0, sound[:16000])
    (end,) = pipeline.feed(0, Block(sound[24000:], 24000, 0.0))
    assert (end.phase, end.onset, end.offset) == ("end", 4000, 16000)
    assert pipeline.gaps(0) == (1, 8000)
    changes = [change for _, change in pipeline.advance()] + pipeline.finish(0)
    assert ends(changes) == [(30, 40)]


def test_a_gap_begins_with_fresh_state_and_silent_context(shipped):
    noise = np.random.default_rng(0).normal(0, 0.2, 60000).astype(np.float32)
    recording = Recording(shipped)
    pipeline = Pipeline(recording, 1)
    pipeline.begin(0, 22050)
    feed(pipeline, 0, noise[:30000])
    recording.rows.clear()
    feed(pipeline, 0, noise[30000:], first=50000)
    after_gap = np.concatenate([rows[0] for rows in recording.rows])
    fresh, _ = heard(shipped, noise[30000:], 22050)
    np.testing.assert_allclose(after_gap, fresh[: len(after_gap)], atol=1e-5)


def test_onsets_after_a_gap_are_counted_from_the_begin_of_the_session_at_the_source_s_rate(loudness, bursts):
    pipeline = Pipeline(loudness, 1)
    pipeline.begin(0, 48000)
    feed(pipeline, 0, bursts(1.0, rate=48000))
    changes = feed(pipeline, 0, bursts(1.0, (0.3, 0.8), rate=48000), first=96000) + pipeline.finish(0)
    assert [(round(onset), round(offset)) for onset, offset in ends(changes)] == [(23, 28)]


def test_finish_scores_the_last_part_of_a_hop_and_ends_events_where_the_sound_ends(loudness, bursts):
    rows, changes = heard(loudness, bursts(1.05, (1.0, 1.05)), RATE)
    assert len(rows) == 11
    assert ends(changes) == [(10, 10.5)]


def test_a_sound_without_a_sample_has_no_rows(loudness):
    assert len(heard(loudness, np.zeros(0, np.float32), RATE)[0]) == 0


def test_losing_a_source_ends_its_events_and_leaves_the_others_alone(loudness, bursts):
    pipeline = Pipeline(loudness, 2)
    for slot in (0, 1):
        pipeline.begin(slot, RATE)
        feed(pipeline, slot, bursts(1.0, (0.5, 1.0)))
    assert ends(pipeline.lose(0)) == [(5, 10)]
    pipeline.begin(0, RATE)
    assert feed(pipeline, 0, bursts(1.0)) == []
    assert ends(feed(pipeline, 1, bursts(1.0, (0.0, 0.2)), first=8000)) == [(5, 12)]


def test_a_new_session_resets_only_its_own_slot(loudness, bursts):
    recording = Recording(loudness)
    pipeline = Pipeline(recording, 2)
    for slot in (0, 1):
        pipeline.begin(slot, RATE)
        feed(pipeline, slot, bursts(1.0, (0.0, 1.0)))
    pipeline.begin(0, RATE)
    recording.rows.clear()
    for slot, first in ((0, 0), (1, 8000)):
        pipeline.feed(slot, Block(bursts(0.1), first, 0.0))
    pipeline.advance()
    so_far = recording.rows[0][:, 0, 1]
    assert so_far[0] == 0
    assert so_far[1] == pytest.approx(0.09, abs=0.001)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8000, 22050, 48000]), st.lists(st.integers(0, 30000), max_size=8))
def test_an_event_s_weighted_level_is_that_of_its_own_samples_at_the_source_s_rate(loudness, bursts, rate, sizes):
    sound = bursts(3.05, (0.3, 1.0), (1.5, 1.7), (2.9, 3.05), rate=rate)
    weighted = AWeighting(rate).push(sound)
    pipeline, first, changes = Pipeline(loudness, 1), 0, []
    pipeline.begin(0, rate)
    streaming = AWeighting(rate)
    for block in np.split(sound, np.cumsum(sizes)):
        changes += pipeline.feed(0, Block(block, first, 0.0), streaming.push(block))
        changes += [change for _, change in pipeline.advance()]
        first += len(block)
    found = [change for change in changes + pipeline.finish(0) if change.phase == "end" and change.label == "loud"]
    assert len(found) == 3
    for change in found:
        rows = -(-(change.offset - change.onset) // HOP)  # the last one goes on in silence
        begin, end = round(change.onset * rate / RATE), round(change.offset * rate / RATE)
        expected = np.square(weighted[begin:end]).sum() / (rows * HOP * rate / RATE)
        assert change.mean_square_a == pytest.approx(expected, rel=1e-9)


def test_a_gap_does_not_shift_what_the_weighted_level_of_an_event_is_taken_of(loudness, bursts):
    sound = bursts(2.0, (0.5, 1.0), rate=48000)
    pipeline = Pipeline(loudness, 1)
    pipeline.begin(0, 48000)
    pipeline.feed(0, Block(bursts(1.01, rate=48000), 0, 0.0), np.zeros(48480))
    pipeline.advance()
    changes = pipeline.feed(0, Block(sound, 100_001, 0.0), sound.astype(np.float64))
    changes += [change for _, change in pipeline.advance()] + pipeline.finish(0)
    (end,) = (change for change in changes if change.phase == "end" and change.label == "loud")
    begin = round(end.onset * 6) - 100_001
    expected = np.square(sound[begin : begin + (end.offset - end.onset) * 6].astype(np.float64)).mean()
    assert end.mean_square_a == pytest.approx(expected, rel=1e-6)
    assert end.mean_square == pytest.approx(expected, rel=0.02)


def test_a_session_hears_what_the_one_before_it_heard_however_long_that_was(loudness, bursts):
    pipeline = Pipeline(loudness, 1)
    for seconds in (9.0, 2.0, 2.0):
        pipeline.begin(0, RATE)
        changes = feed(pipeline, 0, bursts(seconds, (seconds - 1, seconds - 0.5))) + pipeline.lose(0)
        assert [(change.phase, change.label) for change in changes if change.label == "loud"] == [
            ("start", "loud"),
            ("end", "loud"),
        ]
