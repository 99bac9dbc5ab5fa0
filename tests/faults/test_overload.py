"""18: a computer that is too slow, a loop that hangs. What is not heard is counted; nobody waits for what does not come back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def slow_model(loudness_model, tmp_path_factory):
    """The loudness model with enough arithmetic in every row that no computer of ours keeps up with it."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    model = onnx.load(loudness_model)
    graph, size = model.graph, 1024
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((size, size), np.float32), "weights"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([size, size], np.int64), "square"))
    node = onnx.helper.make_node
    scores = next(one for one in graph.node if one.output[0] == "scores")
    scores.output[0] = "quick"
    graph.node.extend(
        [
            node("Shape", ["peak"], ["peak_shape"], start=0, end=2),
            node("Concat", ["peak_shape", "square"], ["work_shape"], axis=0),
            node("Unsqueeze", ["peak", "last"], ["peak_4d"]),
            node("Expand", ["peak_4d", "work_shape"], ["work_0"]),
        ]
    )
    for i in range(8):
        graph.node.append(node("MatMul", [f"work_{i}", "weights"], [f"work_{i + 1}"]))
    graph.node.extend(
        [
            node("ReduceMax", ["work_8"], ["nothing_4d"], axes=[3], keepdims=0),
            node("ReduceMax", ["nothing_4d"], ["nothing"], axes=[2], keepdims=1),
            node("Add", ["quick", "nothing"], ["scores"]),
        ]
    )
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    onnx.save(model, path)
    return path


def resident_mb(run):
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_18_a_step_slower_than_its_hop_drops_whole_windows_counts_them_and_keeps_its_memory(
    broker, start, slow_model, microphone, bursts, tmp_path
):
    (tmp_path / "detector.toml").write_text('node = "street"')
    microphone.hears(bursts(1.0, (0.2, 0.7), rate=48000))
    broker.start()
    witness = broker.witness()
    run = start(
        "urbandetect", "run", "--model", slow_model, "--device", "hw:1", "--mqtt", f"127.0.0.1:{broker.port}", env=microphone.env
    )
    at = witness.wait_for(lambda line: '"overload": ' in line, within_s=40)
    before_mb = resident_mb(run)
    heard = json.loads(witness.lines[at].split(" ", 2)[2])["sources"]["mic1"]
    assert heard["dropped_windows"] >= 10
    assert heard["lost_samples"] == pytest.approx(heard["dropped_windows"] * 4800, rel=0.2)
    assert "this computer is too slow" in run.errors.read_text()
    witness.wait_for(lambda line: '"overload": ' in line, within_s=40, after=at + 1)
    print(f"{heard['dropped_windows']} windows dropped at the first time, memory {resident_mb(run) - before_mb:+.1f} MB")
    assert resident_mb(run) - before_mb < 60  # a row more in a step takes this model 38 MB
    begin_s = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert time.monotonic() - begin_s < 20  # what was heard is still scored, up to 3 s of it


def test_a_loop_that_stands_still_ends_the_program_with_75_and_says_at_what():
    program = """if True:
        import logging, time
        from detector.health import end_when_it_hangs
        logging.basicConfig()
        end_when_it_hangs(lambda: 7, lambda: "the model", hang_s=0.4)
        time.sleep(30)
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 75
    assert "the model hangs for 0.4 s" in ended.stderr


def test_a_loop_that_stands_still_ends_the_program_even_where_nobody_reads_its_log():
    program = """if True:
        import logging, os, time
        from detector.health import end_when_it_hangs
        logging.basicConfig()
        end_when_it_hangs(lambda: 7, lambda: "the log", hang_s=0.4)
        logging.error("x" * 1_000_000)
    """
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as run:
        assert run.wait(20) == 75


def test_a_loop_that_gets_on_or_was_only_stopped_is_left_alone():
    program = """if True:
        import os, signal, time
        from detector.health import end_when_it_hangs
        end_when_it_hangs(time.monotonic_ns, lambda: "nothing", hang_s=0.4)
        time.sleep(1)
        print("stop me", flush=True)
        time.sleep(1)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "stop me\n"
        run.send_signal(signal.SIGSTOP)
        time.sleep(1)
        run.send_signal(signal.SIGCONT)
        assert run.wait(20) == 0
