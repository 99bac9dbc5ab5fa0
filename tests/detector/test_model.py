from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from detector.engine import Engine
from detector.errors import ConfigError, ModelError
from detector.model import Model

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
EVEN = {"on": 0.5, "off": 0.5, "min_on_s": 0, "min_off_s": 0}


def said(**changes):
    """Change what the model says of itself."""

    def change(model):
        properties = {entry.key: entry for entry in model.metadata_props}
        properties["urbandetect"].value = json.dumps(json.loads(properties["urbandetect"].value) | changes)

    return change


def without_property(model):
    del model.metadata_props[:]


def property_not_json(model):
    model.metadata_props[0].value = "hello"


def deep_property(model):
    model.metadata_props[0].value = "[" * 100_000


def extra_input(model):
    model.graph.input.append(onnx.helper.make_tensor_value_info("speed", onnx.TensorProto.FLOAT, [1]))


def extra_output(model):
    model.graph.node.append(onnx.helper.make_node("Identity", ["scores"], ["more"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))


def rows_summed(model):
    model.graph.node[-1].output[0] = "each"
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["each", "one"], ["scores"]))


def not_a_number(model):
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Sub", ["clipped", "clipped"], ["nothing"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["nothing", "nothing"], ["scores"]))


def above_one(model):
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Exp", ["clipped"], ["exp"]))
    model.graph.node.append(onnx.helper.make_node("Exp", ["exp"], ["scores"]))


def one_stream_only(model):
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "streams" and value.name == "audio":
                dim.dim_value = 2


def one_row_at_a_time(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 400 + 800


def state_without_streams(model):
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "batch"


def state_of_any_size(model):
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_param = "features"


def state_of_nothing(model):
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 0


def state_of_4_gigabytes(model):
    for value in (model.graph.input[1], model.graph.output[1]):
        value.type.tensor_type.shape.dim[2].dim_value = 10**9


def above_one_when_loud(model):
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Exp", ["clipped"], ["scores"]))


def no_number_when_loud(model):
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Sub", ["clipped", "unit"], ["less"]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["less"], ["rest"]))
    model.graph.node.append(onnx.helper.make_node("Sub", ["rest", "clipped"], ["either"]))
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["either"], ["scores"]))


def endless_state_when_loud(model):
    [last] = [node for node in model.graph.node if node.output[0] == "h_out"]
    last.output[0] = "grown0"
    for i in range(3):
        model.graph.node.append(onnx.helper.make_node("Exp", [f"grown{i}"], [f"grown{i + 1}" if i < 2 else "h_out"]))


def scores_of_64_bit(model):
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Cast", ["clipped"], ["scores"], to=onnx.TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def six_gigabytes(model):
    model.graph.initializer.append(onnx.helper.make_tensor("so_many", onnx.TensorProto.INT64, [1], [3 << 28]))
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("Expand", ["one", "so_many"], ["many"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMin", ["many"], ["least"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Cast", ["least"], ["factor"], to=onnx.TensorProto.FLOAT))
    model.graph.node.append(onnx.helper.make_node("Mul", ["clipped", "factor"], ["scores"]))


@pytest.mark.parametrize(
    "change",
    [
        without_property,
        property_not_json,
        deep_property,
        extra_input,
        extra_output,
        rows_summed,
        not_a_number,
        above_one,
        one_stream_only,
        one_row_at_a_time,
        state_without_streams,
        state_of_any_size,
        state_of_nothing,
        state_of_4_gigabytes,
        above_one_when_loud,
        no_number_when_loud,
        endless_state_when_loud,
        scores_of_64_bit,
        six_gigabytes,
        said(schema=2),
        said(schema="2" * 10_000),
        said(labels=["loud"]),
        said(labels=["loud", "so_far", "third"]),
        said(labels=[]),
        said(labels=7),
        said(labels=["loud", "loud"]),
        said(
            labels=["loud", "a/b"],
            thresholds={label: {"on": 1, "off": 0, "min_on_s": 0, "min_off_s": 0} for label in ["loud", "a/b"]},
        ),
        said(thresholds={}),
        said(thresholds={label: {"on": 0.2, "off": 0.5, "min_on_s": 0, "min_off_s": 0} for label in ["loud", "so_far"]}),
        said(thresholds={label: {"on": 0.5, "off": 0.2, "min_on_s": 0, "min_off_s": float("inf")} for label in ["loud", "so_far"]}),
        said(thresholds={label: {"on": 0.5, "off": 0.2, "min_on_s": 0, "min_off_s": 1e308} for label in ["loud", "so_far"]}),
        said(thresholds={label: {"on": 0, "off": 0, "min_on_s": 0, "min_off_s": 0} for label in ["loud", "so_far"]}),
        said(thresholds={label: {"on": float("nan"), "off": 0, "min_on_s": 0, "min_off_s": 0} for label in ["loud", "so_far"]}),
        said(thresholds={label: {"level": 0.5} for label in ["loud", "so_far"]}),
        said(
            labels=[f"label{number}" for number in range(2000)], thresholds=dict.fromkeys([f"label{n}" for n in range(2000)], EVEN)
        ),
        said(labels=["loud", "a" * 100_000], thresholds={"loud": EVEN, "a" * 100_000: EVEN}),
        said(name="a\nb"),
        said(name="\ud800"),
        said(version="\x1b[2J"),
        said(version="1" * 10_000),
        said(metrics={"text": "a" * 2_000_000}),
        said(hop=0),
        said(hop=1 << 21),
        said(context=1 << 21),
        said(hop="fast"),
        said(hop=float("inf")),
        said(sample_rate=10),
        said(context=-1),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_in_one_line_that_names_it(loudness_model, tmp_path, change):
    model = onnx.load(loudness_model)
    change(model)
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        Model(path, "cpu")
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_model_that_does_not_answer_in_time_is_refused(loudness_model, tmp_path, monkeypatch):
    """Of multiplications that would take half a minute only the one under way is waited for."""
    model = onnx.load(loudness_model)
    model.graph.initializer.append(onnx.helper.make_tensor("square", onnx.TensorProto.INT64, [2], [1000, 1000]))
    model.graph.node[-1].output[0] = "clipped"
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["audio"], ["loudest"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Expand", ["loudest", "square"], ["product0"]))
    for i in range(1000):
        model.graph.node.append(onnx.helper.make_node("MatMul", ["product0", f"product{i}"], [f"product{i + 1}"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMin", ["product1000"], ["least"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Mul", ["clipped", "least"], ["scores"]))
    onnx.save(model, tmp_path / "slow.onnx")
    monkeypatch.setattr("detector.model.LONGEST_TRY_S", 0.2)
    started_s = time.monotonic()
    with pytest.raises(ModelError, match=r"slow\.onnx: does not step 1 streams over 2 hops \(not in 0\.2 s\)"):
        Model(tmp_path / "slow.onnx", "cpu")
    assert time.monotonic() - started_s < 5


def test_a_file_that_is_no_model_is_refused_in_one_line_that_names_it(shipped_model, tmp_path):
    whole = shipped_model.read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    files = {
        "half.onnx": whole[: len(whole) // 2],
        "cut.onnx": whole[:-10],
        "noise.onnx": noise,
        "empty.onnx": b"",
        "text.onnx": b"hi",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.onnx").mkdir()
    for path in [*map(tmp_path.joinpath, files), tmp_path / "folder.onnx", tmp_path / "missing.onnx"]:
        with pytest.raises(ModelError) as caught:
            Model(path, "cpu")
        assert str(caught.value).startswith(str(path))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_gpu_asked_for_that_is_not_there_is_a_configuration_error(loudness_model):
    with pytest.raises(ConfigError, match="no usable GPU"):
        Model(loudness_model, "cuda")


def test_without_a_gpu_auto_runs_on_the_cpu(loudness_model):
    assert Model(loudness_model, "auto").provider in ("cpu", "cuda")
    assert Model(loudness_model, "cpu").provider == "cpu"


@pytest.fixture(params=["loudness_model", "shipped_model"])
def model(request):
    return Model(request.getfixturevalue(request.param), "cpu")


def test_the_state_changes_with_every_step_and_the_scores_depend_on_it(model):
    d = model.description
    audio = np.random.default_rng(0).normal(0, 0.1, (1, d.context + 20 * d.hop)).astype(np.float32)
    fresh = model.fresh_state(1)
    first, state = model.step(audio, fresh)
    second, _ = model.step(audio, state)
    _, later = model.step(audio[:, ::-1].copy(), state)
    assert all((before != after).any() for before, after in zip(fresh + state, state + later, strict=True))
    assert np.abs(first - second).max() > 1e-4


def test_a_step_of_many_rows_is_as_many_steps_of_one(model):
    d = model.description
    audio = np.random.default_rng(0).normal(0, 0.1, (2, d.context + 6 * d.hop)).astype(np.float32)
    whole, _ = model.step(audio, model.fresh_state(2))
    state, rows = model.fresh_state(2), []
    for row in range(6):
        scores, state = model.step(audio[:, row * d.hop :][:, : d.context + d.hop], state)
        rows.append(scores)
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, atol=1e-4)


def test_what_comes_later_does_not_change_a_row(model):
    d = model.description
    audio = np.random.default_rng(0).normal(0, 0.1, (1, d.context + 6 * d.hop)).astype(np.float32)
    before, _ = model.step(audio, model.fresh_state(1))
    audio[:, d.context + 3 * d.hop :] = 1
    after, _ = model.step(audio, model.fresh_state(1))
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-5)


def test_a_slot_is_stepped_and_reset_without_touching_the_others(model):
    d = model.description
    window = np.random.default_rng(0).normal(0, 0.1, d.context + d.hop).astype(np.float32)
    engine, fresh = Engine(model, 3), Engine(model, 3)
    engine.step([0, 1, 2], [window] * 3)
    engine.step([1], [window])
    engine.reset(1)
    carried = engine.step([0, 1, 2], [window] * 3)
    first = fresh.step([0, 1, 2], [window] * 3)
    second = fresh.step([0, 1, 2], [window] * 3)
    np.testing.assert_allclose(carried[1], first[1], atol=1e-5)
    np.testing.assert_allclose(carried[[0, 2]], second[[0, 2]], atol=1e-5)


def test_a_state_may_have_its_streams_on_any_axis(loudness_model, tmp_path):
    """The contract promises one axis named `streams`, not which."""
    model = onnx.load(loudness_model)
    for node in model.graph.node:
        if node.op_type == "Transpose":
            node.attribute[0].ints[:] = [0, 1, 2]
    for value in (model.graph.input[1], model.graph.output[1]):
        value.type.tensor_type.shape.dim[0].dim_param = "streams"
        value.type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, tmp_path / "first.onnx")
    loud, silent = np.full(1200, 0.5, np.float32), np.zeros(1200, np.float32)
    engine = Engine(Model(tmp_path / "first.onnx", "cpu"), 2)
    engine.step([0, 1], [loud, loud])
    engine.step([1], [loud])
    engine.reset(0)
    np.testing.assert_allclose(engine.step([0, 1], [silent, silent])[:, 0, 1], [0, 0.01])
