"""What every test may want: the installed program, and a small real model whose scores are known beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.register_assert_rewrite("parts", "stream_parts")
from parts import broker, clock, clock_shim, daemon, events, microphone, rtfile, start, wire  # noqa: E402, F401 - fixtures for every folder
from stream_parts import camera, deaf_port, sound_server  # noqa: E402, F401

PROGRAM = Path(sys.executable).with_name("urbandetect")


@pytest.fixture
def urbandetect(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed program to its end, in an empty folder."""

    def call(*arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAM), *map(str, arguments)]
        return subprocess.run(command, **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60} | how)

    return call


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    from detector.model import shipped

    return shipped("urban.onnx")


@pytest.fixture(scope="session")
def loudness_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the contract at 8 kHz with rows of 0.1 s. Its labels: `loud`, the peak of the row's own hop, and `so_far`, a
    hundredth of all those peaks since the session began, which it carries in its state."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    make, floats, ints = onnx.helper.make_node, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    hop, context = 800, 400

    def value(name: str, shape: list[object]) -> object:
        return onnx.helper.make_tensor_value_info(name, floats, shape)

    def constant(name: str, values: list[float], kind: int = ints) -> object:
        return onnx.helper.make_tensor(name, kind, [len(values)], values)

    graph = onnx.helper.make_graph(
        [
            make("Slice", ["audio", "context", "end", "one"], ["new"]),
            make("Reshape", ["new", "rows_shape"], ["rows"]),
            make("Abs", ["rows"], ["size"]),
            make("ReduceMax", ["size"], ["peak"], axes=[2], keepdims=1),
            make("CumSum", ["peak", "axis"], ["sum"]),
            make("Transpose", ["h"], ["before"], perm=[1, 0, 2]),
            make("Add", ["sum", "before"], ["total"]),
            make("Slice", ["total", "last", "end", "one"], ["after"]),
            make("Transpose", ["after"], ["h_out"], perm=[1, 0, 2]),
            make("Mul", ["total", "hundredth"], ["so_far"]),
            make("Concat", ["peak", "so_far"], ["both"], axis=2),
            make("Clip", ["both", "zero", "unit"], ["scores"]),
        ],
        "loudness",
        [value("audio", ["streams", "samples"]), value("h", [1, "streams", 1])],
        [value("scores", ["streams", "rows", 2]), value("h_out", [1, "streams", 1])],
        [
            constant("context", [context]),
            constant("end", [1 << 40]),
            constant("one", [1]),
            constant("last", [-1]),
            constant("rows_shape", [0, -1, hop]),
            onnx.helper.make_tensor("axis", ints, [], [1]),
            onnx.helper.make_tensor("hundredth", floats, [], [0.01]),
            onnx.helper.make_tensor("zero", floats, [], [0]),
            onnx.helper.make_tensor("unit", floats, [], [1]),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    threshold = {"on": 0.5, "off": 0.25, "min_on_s": 0.1, "min_off_s": 0.2}
    description = {
        "schema": 1,
        "name": "loudness",
        "version": "1",
        "sample_rate": 8000,
        "hop": hop,
        "context": context,
        "labels": ["loud", "so_far"],
        "thresholds": {"loud": threshold, "so_far": threshold | {"on": 1.0}},
        "clip_pooling": "mean",
        "cfg": "",
        "frontend": {},
        "training": {},
        "metrics": {},
    }
    onnx.helper.set_model_props(model, {"urbandetect": json.dumps(description)})
    path = tmp_path_factory.mktemp("model") / "loudness.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def bursts() -> Callable[..., np.ndarray]:
    """Silence with a loud tone in it: `bursts(3.0, (1.0, 1.5))` is 3 s at 8 kHz, loud from 1.0 to 1.5 s."""

    def make(seconds: float, *loud: tuple[float, float], rate: int = 8000) -> np.ndarray:
        time = np.arange(round(seconds * rate)) / rate
        sounding = np.any([(begin <= time) & (time < stop) for begin, stop in loud], axis=0)
        return (0.9 * np.sin(2 * np.pi * 1000 * (time + 1 / 8 / 1000)) * sounding).astype(np.float32)

    return make
