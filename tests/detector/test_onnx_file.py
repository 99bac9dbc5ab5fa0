"""Our reader of ONNX files is held to the onnx package, whose generated classes know every field."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import ModelError
from detector.onnx_file import _HELD, DOMAINS, LOOPS, MOST_FIELDS, MOST_NODES, check

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
Node, Tensor, Function = onnx.NodeProto, onnx.TensorProto, onnx.FunctionProto


def faults(message):
    """What of a message, or of any within it, is not to be let through."""
    kind = message.DESCRIPTOR.name
    if kind == "NodeProto" and (message.domain not in DOMAINS or message.op_type in LOOPS):
        yield message.name
    if kind == "TensorProto" and (message.data_location == Tensor.EXTERNAL or message.external_data):
        yield message.name
    if kind == "FunctionProto":
        yield "functions"
    for field, value in message.ListFields():
        if field.message_type:
            for each in value if field.is_repeated else [value]:
                yield from faults(each)


names = st.sampled_from(["a", "b/c", "d.e", "f_g"])
operators = st.sampled_from(["Add", "If", "LSTM", "Conv"] * 5 + ["", "Loop", "Scan", "SequenceMap"])
domains = st.sampled_from(["", "", "ai.onnx"] * 8 + ["com.microsoft", "ai.onnx.ml", "ai.onnx.", "AI.ONNX", "é"])
places = st.sampled_from([{}] * 12 + [{"data_location": Tensor.EXTERNAL}, {"external_data": [{"key": "location", "value": "x"}]}])
few = st.integers(0, 2)


@st.composite
def models(draw):
    """Any model with graphs within graphs, most of them without a fault."""

    def several(make, *how):
        return [make(*how) for _ in range(draw(few))]

    def tensor():
        return Tensor(name=draw(names), dims=[2], raw_data=draw(st.binary(max_size=9)), **draw(places))

    def sparse():
        return onnx.SparseTensorProto(values=tensor(), indices=tensor(), dims=[9])

    def attribute(depth):
        more = [
            {"f": 0.5, "i": 3, "ints": [1, 300]},
            {"t": tensor()},
            {"tensors": several(tensor)},
            {"sparse_tensor": sparse()},
            {"sparse_tensors": several(sparse)},
        ]
        if depth:
            more += [{"g": graph(depth - 1)}, {"graphs": several(graph, depth - 1)}]
        return onnx.AttributeProto(name=draw(names), **more[draw(st.integers(0, len(more) - 1))])

    def node(depth):
        return Node(
            name=draw(names), op_type=draw(operators), domain=draw(domains), attribute=several(attribute, depth), input=["x"]
        )

    def graph(depth):
        return onnx.GraphProto(
            name=draw(names), node=several(node, depth), initializer=several(tensor), sparse_initializer=several(sparse)
        )

    model = onnx.ModelProto(ir_version=draw(st.integers(0, 1 << 40)), graph=graph(2), producer_name="x")
    rare = draw(st.integers(0, 9))
    if rare == 0:
        model.functions.add(name="f", node=[node(0)])
    if rare == 1:
        model.training_info.add(initialization=graph(0), algorithm=graph(0))
    return model


@settings(deadline=None, max_examples=100)
@given(models())
def test_a_file_is_refused_exactly_when_the_onnx_package_finds_a_fault_in_it_and_the_fault_is_named(model):
    found = list(faults(model))
    try:
        check(model.SerializeToString(), "x.onnx")
    except ModelError as error:
        assert any(name in str(error) for name in found)  # noqa: PT017 - it may also be let through
        assert str(error).startswith("x.onnx: ")  # noqa: PT017
    else:
        assert not found


@settings(deadline=None, max_examples=150)
@given(models(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=3))
def test_an_altered_file_that_is_let_through_is_no_model_or_one_without_a_fault(model, changes):
    content = bytearray(model.SerializeToString())
    for where, cut, put in changes:
        at = round(where * len(content))
        content[at : at + cut] = put
    try:
        check(bytes(content), "x.onnx")
    except ModelError:
        return
    try:
        altered = onnx.ModelProto.FromString(bytes(content))
    except Exception:  # noqa: BLE001 - onnxruntime's reader refuses it too
        return
    assert not list(faults(altered))


@settings(deadline=None)
@given(st.binary() | st.binary(max_size=20).map(lambda tail: b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + tail))
def test_any_bytes_are_let_through_or_refused_in_one_line(content):
    try:
        check(content, "x.onnx")
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_every_field_that_can_hold_a_node_a_tensor_or_a_function_is_followed():
    """A newer onnx may know more of them."""
    seen, todo, ways = set(), [("model", onnx.ModelProto.DESCRIPTOR)], set()
    wanted = {"NodeProto", "TensorProto", "FunctionProto"}

    def reaches(kind, past=()):
        return kind.name in wanted or any(
            reaches(field.message_type, (*past, kind.name)) for field in kind.fields if field.message_type and kind.name not in past
        )

    while todo:
        message, kind = todo.pop()
        for field in kind.fields:
            if field.message_type and reaches(field.message_type) and message not in ("function", "tensor"):
                ways.add((message, field.number))
                held = _HELD[message][field.number]
                if held not in seen:
                    seen.add(held)
                    todo.append((held, field.message_type))
    assert ways == {(message, number) for message, fields in _HELD.items() for number in fields}


def test_the_reader_takes_no_longer_for_a_deep_file_than_for_a_flat_one():
    graph = b""
    for _ in range(3000):  # a graph in an attribute in a node in a graph
        for tag in b"\x32\x2a\x0a":
            graph = bytes([tag]) + varint(len(graph)) + graph
    started_s = time.process_time()
    check(b"\x3a" + varint(len(graph)) + graph, "x.onnx")
    assert time.process_time() - started_s < 0.5


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize(
    "content", [b"\x08\x01" * (MOST_FIELDS + 1), b"\x3a" + varint(2 * MOST_NODES + 2) + b"\x0a\x00" * (MOST_NODES + 1)]
)
def test_more_than_any_model_holds_is_refused(content):
    with pytest.raises(ModelError, match="more than"):
        check(content, "x.onnx")


def test_the_shipped_model_is_let_through_in_a_few_milliseconds(shipped_model):
    content = shipped_model.read_bytes()
    took_s = []
    for _ in range(5):
        started_s = time.process_time()
        check(content, "urban.onnx")
        took_s.append(time.process_time() - started_s)
    assert min(took_s) < 0.02
