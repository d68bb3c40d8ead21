"""The border of an ONNX graph: what it takes, gives and refers to, read off its bytes before any library opens it.

The runtime has no onnx package. https://protobuf.dev/programming-guides/encoding and onnx.proto say how the bytes are
laid out; all that is of no interest here is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from deltart.dtypes import BY_ONNX
from deltart.errors import ArtifactError
from deltart.json_files import shown
from deltart.manifest import AGAIN, GraphEntry, Manifest

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
WEIGHTS = "weights"  # folder of the artifact

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 5, 11, 12
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_TYPE, TENSOR_SHAPE, SHAPE_DIM = 1, 2, 1, 1, 2, 1
DIM_VALUE, DIM_PARAM = 1, 2
INITIALIZER_DIMS, INITIALIZER_TYPE, INITIALIZER_NAME, INITIALIZER_EXTERNAL = 1, 2, 8, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2


Tensor = tuple[str, list[str | int]]  # element type and axes


@dataclass(frozen=True)
class Border:
    """Every input and output by name; place, type and shape of every weight that lies in another file."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    weights: dict[str, dict[str, Any]]


def check_border(content: bytes, entry: GraphEntry, manifest: Manifest, where: str) -> None:
    """Raises ArtifactError unless the ONNX model `content` takes, gives and refers to what the manifest says of it."""
    try:
        border = _read(memoryview(content))
    except (ValueError, KeyError, IndexError):
        raise ArtifactError(f"{where} is no ONNX model", "the graph that was exported", AGAIN) from None
    inputs = {t.name: (t.dtype, t.axes) for t in entry.inputs} | {s.name: (s.dtype, s.axes) for s in entry.states}
    outputs = {t.name: (t.dtype, t.axes) for t in entry.outputs} | {s.output: (s.dtype, s.axes) for s in entry.states}
    weights = {name: _place(manifest, name) for name in entry.weights}
    _compare(f"{where}: input", border.inputs, inputs)
    _compare(f"{where}: output", border.outputs, outputs)
    _compare(f"{where}: weight", border.weights, weights)


def _compare(where: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"{where} {shown(name)} is {shown(found.get(name, 'absent'))}",
                f"{shown(expected.get(name, 'absent'))}, as the manifest says",
                AGAIN,
            )


def _place(manifest: Manifest, name: str) -> dict[str, Any]:
    tensor = manifest.tensors[name]
    place = {"location": f"{WEIGHTS}/{tensor.file}", "offset": str(tensor.offset), "length": str(tensor.nbytes)}
    return {"dtype": tensor.dtype, "shape": tensor.shape, **place}


def _read(model: memoryview) -> Border:
    inputs, outputs, weights = {}, {}, {}
    for graph in _fields(model, MODEL_GRAPH):
        for value in _fields(graph, GRAPH_INPUT):
            name, kind = _value(value)
            inputs[name] = kind
        for value in _fields(graph, GRAPH_OUTPUT):
            name, kind = _value(value)
            outputs[name] = kind
        for tensor in _fields(graph, GRAPH_INITIALIZER):
            weight = _initializer(tensor)
            if weight is not None:
                weights[_text(tensor, INITIALIZER_NAME)] = weight
    return Border(inputs, outputs, weights)


def _value(value: memoryview) -> tuple[str, tuple[str, list[str | int]]]:
    (kind,) = _fields(value, VALUE_TYPE)
    (tensor,) = _fields(kind, TYPE_TENSOR)
    (element,) = _fields(tensor, TENSOR_TYPE)
    (shape,) = _fields(tensor, TENSOR_SHAPE)
    axes: list[str | int] = []
    for dim in _fields(shape, SHAPE_DIM):
        axes += [bytes(param).decode() for param in _fields(dim, DIM_PARAM)] or list(_fields(dim, DIM_VALUE))
    return _text(value, VALUE_NAME), (BY_ONNX[element].name, axes)


def _initializer(tensor: memoryview) -> dict[str, Any] | None:
    """Type, shape and place of an initializer in another file; None for one inside the model."""
    place = {_text(e, ENTRY_KEY): _text(e, ENTRY_VALUE) for e in _fields(tensor, INITIALIZER_EXTERNAL)}
    if not place:
        return None
    (element,) = _fields(tensor, INITIALIZER_TYPE)
    shape: list[int] = []
    for dims in _fields(tensor, INITIALIZER_DIMS):
        shape += [dims] if isinstance(dims, int) else _packed(dims)
    return {"dtype": BY_ONNX[element].stored, "shape": shape, **place}


def _text(message: memoryview, number: int) -> str:
    (found,) = _fields(message, number)
    return bytes(found).decode()


def _fields(message: memoryview, wanted: int) -> Iterator[Any]:
    """The values of field `wanted`: integers, or bytes where those are. Raises ValueError for what is no message."""
    if not isinstance(message, memoryview):
        raise ValueError("a number where a message is due")
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, value = tag & 7, cast(Any, None)
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("cut off")
        if tag >> 3 == wanted and value is not None:
            yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift >= 70:
            raise ValueError("a number of more than ten bytes")


def _packed(numbers: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(numbers):
        value, at = _varint(numbers, at)
        found.append(value)
    return found
