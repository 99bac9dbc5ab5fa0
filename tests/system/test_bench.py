"""`urbandetect bench` measures the real parts, a daemon among them, and says where it did."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from detector import speed
from detector.cli import cli


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {
        "MEASURE_S": 0.01,
        "SETTLE_S": 0.5,
        "LISTEN_S": 1.0,
        "STREAMS": (1, 4),
        "HOPS": (1, 8),
        "CROWD": 10,
    }.items():
        monkeypatch.setattr(speed, name, value)


def test_every_figure_is_measured_and_within_its_spread():
    said = json.loads(CliRunner().invoke(cli, ["bench", "--provider", "cpu", "--json"], catch_exceptions=False).output)
    assert said["provider"] == "cpu"
    assert said["model"].startswith("urban ")
    figures = {figure["what"]: figure for figure in said["figures"]}
    assert len(figures) == len(said["figures"]) == 13
    for figure in figures.values():
        assert 0 < figure["low"] <= figure["value"] <= figure["high"], figure
    one, eight = figures["network, one stream, 1 hop a step"], figures["network, one stream, 8 hops a step"]
    assert one["value"] < eight["value"] < 8 * one["value"]  # a longer step costs more, a row of it less
    assert figures["start of the process to the first score"]["unit"] == "s"
    assert 20 < figures["its resident memory"]["value"] < 500


def test_for_people_it_is_a_table_with_the_machine_above_it():
    lines = CliRunner().invoke(cli, ["bench", "--provider", "cpu"], catch_exceptions=False).output.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["processor", "provider", "model", "versions"]
    assert len(lines) == 4 + 2 + 13
    assert any("times real time" in line for line in lines)
