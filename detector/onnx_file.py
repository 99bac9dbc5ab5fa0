"""What is in an ONNX file, before onnxruntime sees it: operators of the standard, none that loops, nothing kept in another file.

An ONNX file is one protobuf message: fields, each a number and a value, which may be a message again. Only the way down to nodes
and tensors is followed; weights and all else are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

from detector.errors import ModelError

DOMAINS = ("", "ai.onnx")
"""Both name the standard."""
LOOPS = ("Loop", "Scan", "SequenceMap")
"""Operators that repeat a graph, for ever if the file says so. No network of the grammar needs one; `If` cannot repeat."""
MOST_NODES = 10_000
"""Eighty times those of the shipped model; onnxruntime loads so many in half a second."""
MOST_FIELDS = 300_000
"""Thirty for each of those nodes, read in a third of a second."""

_HELD: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Which fields of a message hold which messages: the numbers of onnx.proto."""
_NAME, _OPERATOR, _DOMAIN = 3, 4, 7
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_NUMBER, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def check(content: bytes, where: str) -> None:
    """Raise ModelError, naming node or tensor, for a file that onnxruntime shall not see; `where` names the file."""
    try:
        _check(content, where)
    except ValueError as error:
        raise unreadable(where, str(error)) from None


def unreadable(where: str, reason: str) -> ModelError:
    """What to raise for bytes that are no ONNX model."""
    return ModelError(where, f"is not a readable ONNX model ({reason})", "is it damaged or an unfinished download?")


def _check(content: bytes, where: str) -> None:
    fields = nodes = 0
    todo = [("model", 0, len(content))]
    while todo:
        message, start, end = todo.pop()
        texts: dict[int, str] = {}
        elsewhere = False
        for number, kind, value, stop in _fields(content, start, end):
            held = _HELD[message].get(number) if kind == _BYTES else None
            fields, nodes = fields + 1, nodes + (held == "node")
            if fields > MOST_FIELDS or nodes > MOST_NODES:
                raise ModelError(where, f"has more than {MOST_NODES:,} nodes or {MOST_FIELDS:,} fields", "use a smaller network")
            if held:
                todo.append((held, value, stop))
            elif kind == _BYTES and message in ("node", "tensor"):
                texts[number] = content[value : min(stop, value + 60)].decode("utf-8", "replace")
            elif kind == _NUMBER and message == "tensor" and number == _DATA_LOCATION:
                elsewhere |= value != 0
        if message == "node":
            _check_node(texts, where)
        elif message == "tensor" and (elsewhere or _EXTERNAL_DATA in texts):
            tensor = f"tensor {texts.get(_TENSOR_NAME, '')!r}"
            raise ModelError(where, f"keeps {tensor} in another file", "save it as one file, without external data")
        elif message == "function":  # each may call another twice: of thirty, a billion nodes
            raise ModelError(where, "has functions of its own", "export it without")


def _check_node(texts: dict[int, str], where: str) -> None:
    name, operator, domain = (texts.get(number, "") for number in (_NAME, _OPERATOR, _DOMAIN))
    if domain not in DOMAINS:
        raise ModelError(where, f"node {name!r} is {f'{domain}.{operator}'!r}, no operator of ONNX", "export it without")
    if operator in LOOPS:
        raise ModelError(where, f"node {name!r} is a {operator}, which may never end", "export it without")


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message content[start:end]: number, kind, a whole number's value or where bytes begin, and where it ends.

    Raises ValueError where they are none.
    """
    at = start
    while at < end:
        begin = at
        tag, at = _whole_number(content, at, end)
        number, kind = tag >> 3, tag & 7
        value = at
        if kind == _NUMBER:
            value, at = _whole_number(content, at, end)
        elif kind == _BYTES:
            size, value = _whole_number(content, at, end)
            at = value + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            number = 0
        if number == 0 or tag >= 1 << 32:
            raise ValueError(f"byte {begin} begins no field")
        if at > end:
            raise ValueError(f"it ends within the field of byte {begin}")
        yield number, kind, value, at


def _whole_number(content: bytes, at: int, end: int) -> tuple[int, int]:
    """The whole number at this byte, seven bits in each and the last one below 128, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at == end:
            raise ValueError("it ends within a number")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the number before byte {at} does not end")
