from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from detector.event import Origin, describe, encode, new_session
from detector.model import Model
from detector.tracker import Change

BEGIN = datetime(2026, 11, 22, 6, 15, 3, 218000, UTC)


@pytest.fixture
def tell(loudness_model):
    origin = Origin("street", "mic1", "5e55", Model(loudness_model, "cpu").description)

    def tell(phase, offset):
        change = Change(phase, "loud", 8000, offset, 0.94001, 0.8, 0.005, 0.62)
        return describe(change, origin, BEGIN + timedelta(seconds=1), 412)

    return tell


def test_an_event_has_exactly_the_fields_of_the_schema(tell):
    assert tell("end", 74256) == {
        "schema": 1,
        "id": "5e55-loud-8000",
        "phase": "end",
        "label": "loud",
        "score": 0.94,
        "score_mean": 0.8,
        "start": "2026-11-22T06:15:04.218Z",
        "end": "2026-11-22T06:15:12.500Z",
        "duration_s": 8.282,
        "node": "street",
        "source": "mic1",
        "session": "5e55",
        "seq": 412,
        "level": {"dbfs": -20.0, "laeq": None},
        "threshold": 0.62,
        "model": {"name": "loudness", "version": "1", "sha256": tell("end", 8000)["model"]["sha256"]},
    }


def test_an_event_of_a_calibrated_microphone_tells_its_laeq(loudness_model):
    model = Model(loudness_model, "cpu").description
    change = Change("end", "loud", 8000, 16000, 0.9, 0.8, 0.005, 0.62, mean_square_a=0.0005)
    told = {c: describe(change, Origin("street", "mic1", "5e55", model, c), BEGIN, 1)["level"] for c in (None, 124.0)}
    assert told == {None: {"dbfs": -20.0, "laeq": None}, 124.0: {"dbfs": -20.0, "laeq": 94.0}}


def test_every_phase_of_an_event_has_the_same_id_start_and_fields_and_only_the_last_an_end(tell):
    start, update, end = tell("start", 8800), tell("update", 16000), tell("end", 16000)
    assert start["id"] == update["id"] == end["id"]
    assert start["start"] == update["start"] == end["start"]
    assert list(start) == list(update) == list(end)
    assert start["end"] is update["end"] is None
    assert end["end"]


def test_an_event_is_one_line_of_json(tell):
    line = encode(tell("start", 8800) | {"node": "Straße\nnorth"})
    assert "\n" not in line
    assert json.loads(line)["node"] == "Straße\nnorth"


def test_sessions_have_different_names():
    assert len({new_session() for _ in range(1000)}) == 1000
