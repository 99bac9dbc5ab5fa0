"""Scanning on Ray: two nodes of a real cluster on this computer, one of which is lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

ray = pytest.importorskip("ray", reason="needs ray: pip install -e '.[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own

FILES, EACH_S = 30, 600


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
        loud = [(at := 10 * k + chance.random(), at + 0.3 + chance.random()) for k in range(EACH_S // 10 - 1)]
        soundfile.write(tmp_path / "in" / f"{number:02}.flac", bursts(EACH_S, *loud), 8000)
    (tmp_path / "in" / "damaged.wav").write_text("no sound")
    scan = ["urbandetect", "scan", "--model", loudness_model, tmp_path / "in"]
    alone = subprocess.run(
        [Path(sys.executable).with_name("urbandetect"), *scan[1:], "--jobs", "1"], capture_output=True, text=True
    )
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    program = start(*scan, "--ray", cluster.address, "--out", "e.jsonl")
    log, deadline = tmp_path / "e.jsonl.ledger-wal", time.monotonic() + 30
    while not (log.exists() and log.stat().st_size > 60_000):
        assert time.monotonic() < deadline, program.errors.read_text()
        time.sleep(0.01)
    workers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _works_for(lost, pid)]
    cluster.remove_node(lost, allow_graceful=False)
    assert workers, "the node had no work"
    assert program.process.poll() is None, "it was done before the node was lost"
    assert program.end(30) == alone.returncode == 64
    assert (tmp_path / "e.jsonl").read_text() == alone.stdout
    assert len({json.loads(line)["file"] for line in alone.stdout.splitlines()}) == FILES
    assert f"{FILES + 1} of {FILES + 1} recordings" in program.errors.read_text()


def _works_for(node, pid):
    """Whether this process is an actor of that node."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return False
    raylet = node.all_processes["raylet"][0].process.pid
    return b"ray::Hearer" in name and parent == raylet


def test_no_cluster_is_one_line(urbandetect, loudness_model, bursts, tmp_path):
    soundfile.write(tmp_path / "a.wav", bursts(1), 8000)
    done = urbandetect("scan", "--model", loudness_model, "--ray", "auto", "a.wav")
    assert done.returncode == 75
    assert done.stderr.startswith("urbandetect: --ray auto: no cluster answers")
    assert len(done.stderr.splitlines()) == 1
