"""Scanning on Ray: two nodes of a real cluster on this computer, one of which is lost."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from detector import cluster as cluster_module
from detector.archive import Job
from detector.model import Model

ray = pytest.importorskip("ray", reason="needs ray: pip install -e '.[cluster]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # ray's own
    pytest.mark.xdist_group("ray"),  # one after the other: `auto` finds any cluster of this computer
]

FILES, EACH_S = 16, 600


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_lost_node_costs_nothing_but_time(start, cluster, loudness_model, bursts, tmp_path):
    """Every recording has one outcome, and the output is that of one process here."""
    chance = random.Random(3)
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        loud = [(at := 10 * k + chance.random(), at + 0.3 + chance.random()) for k in range(3)]
        soundfile.write(tmp_path / "in" / f"{number:02}.flac", np.tile(bursts(30, *loud), EACH_S // 30), 8000)
    (tmp_path / "in" / "damaged.wav").write_text("no sound")
    scan = ["urbandetect", "scan", "--model", loudness_model, tmp_path / "in"]
    alone = subprocess.run(
        [Path(sys.executable).with_name("urbandetect"), *scan[1:], "--jobs", "1"], capture_output=True, text=True
    )
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    program = start(*scan, "--ray", cluster.address, "--out", "e.jsonl")
    deadline = time.monotonic() + 30
    while not _hears(lost):
        assert time.monotonic() < deadline, program.errors.read_text()
        assert program.process.poll() is None, "it was done before the node had work"
        time.sleep(0.01)
    cluster.remove_node(lost, allow_graceful=False)
    assert program.process.poll() is None, "it was done before the node was lost"
    assert program.end(30) == alone.returncode == 64
    assert (tmp_path / "e.jsonl").read_text() == alone.stdout
    assert len({json.loads(line)["file"] for line in alone.stdout.splitlines()}) == FILES
    assert f"{FILES + 1} of {FILES + 1} recordings" in program.errors.read_text()


def _hears(node):
    """Whether a worker of this node is in the middle of a recording: Ray names a process after what it does."""
    raylet = node.all_processes["raylet"][0].process.pid
    with contextlib.suppress(OSError):  # one that ends while it is looked at
        children = " ".join(each.read_text() for each in Path(f"/proc/{raylet}/task").glob("*/children")).split()
        return any(b"ray::Hearer.hear" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)
    return False


def test_a_worker_that_fails_is_replaced_and_counted(loudness_model, bursts, tmp_path, monkeypatch):
    """With an exception, which Ray hands on, instead of its end."""

    class Failing(cluster_module.Hearer):
        def hear(self, name):
            if "bad" in name:
                raise RuntimeError("no memory on this node")
            return super().hear(name)

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setattr(cluster_module, "Hearer", Failing)
    for name in ("bad.wav", "good.wav"):
        soundfile.write(tmp_path / name, bursts(3, (1, 2)), 8000)
    model = Model(loudness_model, "cpu").description
    job = Job(loudness_model, model.sha256, "cpu", model.thresholds)
    outcomes = list(cluster_module.by_ray([str(tmp_path / "bad.wav"), str(tmp_path / "good.wav")], job, "local"))
    errors = {Path(outcome.name).name: outcome.error for outcome in outcomes}
    assert len(outcomes) == 2
    assert "ended the process that read it, 2 times" in errors["bad.wav"]
    assert errors["good.wav"] == ""


def clusters():
    """How many there are on this computer: one that was shut down takes a moment to go."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += b"gcs_server" in (process / "cmdline").read_bytes().split(b"\0")[0]
    return count


def test_no_cluster_is_one_line(urbandetect, loudness_model, bursts, tmp_path):
    deadline_s = time.monotonic() + 30
    while clusters():
        assert time.monotonic() < deadline_s, "another cluster is on this computer"
        time.sleep(0.1)
    soundfile.write(tmp_path / "a.wav", bursts(1), 8000)
    done = urbandetect("scan", "--model", loudness_model, "--ray", "auto", "a.wav")
    assert done.returncode == 75
    assert done.stderr.startswith("urbandetect: --ray auto: no cluster answers")
    assert len(done.stderr.splitlines()) == 1
