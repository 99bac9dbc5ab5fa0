"""Cross-validation on Ray: workers are lost in the middle, and the table is that of one computer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray: pip install -e '.[cluster]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # ray's own
    pytest.mark.xdist_group("ray"),  # one after the other: `auto` finds any cluster of this computer
]

PATIENCE_S = 150
"""Every worker imports torch, on a computer that does other things as well."""


def kill_workers():
    """Those that train a fold; how many there were."""
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::_train"):
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    return killed


@pytest.mark.timeout(2 * PATIENCE_S + 60)
def test_folds_on_a_cluster_that_loses_its_workers_are_those_of_one_computer(tones, recipe_file, command, monkeypatch, tmp_path):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train = ["train", "--recipe", recipe_file(train={"epochs": 3}), "--fold", "all", "--data", tones, "--device", "cpu"]
    command(*train, "--out", tmp_path / "alone")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        program = Path(sys.executable).with_name("urbandetect")
        shared = [*map(str, train), "--out", str(tmp_path / "shared"), "--ray", cluster.address]
        with subprocess.Popen([program, *shared], stderr=subprocess.PIPE, text=True, env=os.environ) as running:
            deadline = time.monotonic() + PATIENCE_S
            while not list((tmp_path / "shared").glob("fold*/last.ckpt")):
                assert running.poll() is None, running.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert kill_workers() > 0
            assert not (tmp_path / "shared" / "folds.md").exists()
            assert running.wait(PATIENCE_S) == 0, running.stderr.read()
    finally:
        cluster.shutdown()
    assert (tmp_path / "shared" / "folds.csv").read_text() == (tmp_path / "alone" / "folds.csv").read_text()
    for fold in (1, 2, 3, 4):
        mine, theirs = (json.loads((tmp_path / kind / f"fold{fold}" / "figures.json").read_text()) for kind in ("shared", "alone"))
        assert mine["metrics"] == theirs["metrics"]
