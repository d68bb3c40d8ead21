"""Writes the ops' contracts as C++ data: what `contract.hpp` includes is derived from the OpSpecs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from deltart.errors import BuildError
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.spec import ACT, VERSION, OpSpec, TensorSpec
from deltart.plugins.trt_plugin import ACCEPTED, CONTRACT_FIELD, PLUGIN_VERSION, type_source


def contract_source(specs: Sequence[OpSpec]) -> str:
    """C++ text that defines OPS and the constants of the serialized form, in namespace deltart."""
    table = "".join(f"    {_op(spec)},\n" for spec in specs)
    return (
        "namespace deltart {\n"
        f"inline constexpr int32_t OP_VERSION = {VERSION};\n"
        f"inline constexpr char PLUGIN_VERSION[] = {_text(PLUGIN_VERSION)};\n"
        f"inline constexpr char CONTRACT_FIELD[] = {_text(CONTRACT_FIELD)};\n"
        f"inline constexpr char CONTRACT_DIGEST[] = {_text(contract_digest(specs))};\n"
        f"inline const std::vector<Op> OPS = {{\n{table}}};\n"
        "}  // namespace deltart\n"
    )


def contract_digest(specs: Sequence[OpSpec]) -> str:
    """Sixteen hex digits of everything that a plan and a plugin library must agree on."""
    words = [PLUGIN_VERSION, CONTRACT_FIELD, str(VERSION), *(_op(spec) for spec in specs)]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def _op(spec: OpSpec) -> str:
    attributes = (_braces("Attribute", _text(name), _flag(kind is float)) for name, kind in spec.attributes.items())
    return _braces(
        "Op",
        _text(spec.name),
        _text(kernel_of(spec).folder.name),
        _braces("", *(_input(tensor) for tensor in spec.inputs)),
        _braces("", *(_output(spec, tensor) for tensor in spec.outputs)),
        _braces("", *attributes),
    )


def _input(tensor: TensorSpec) -> str:
    return _braces("Input", *_types(tensor), _braces("", *(_text(axis) for axis in tensor.axes)))


def _output(spec: OpSpec, tensor: TensorSpec) -> str:
    names = [t.name for t in spec.inputs]
    alias = -1 if tensor.alias is None else names.index(tensor.alias)
    source = type_source(spec, tensor)
    axes = _braces("", *(_sum(spec, axis) for axis in tensor.axes))
    return _braces("Output", *_types(tensor), axes, str(alias), str(-1 if source is None else source))


def _types(tensor: TensorSpec) -> tuple[str, str, str]:
    """Name, whether it is an activation, and accepted types."""
    accepted = _braces("", *(f"DType::{name}" for name in ACCEPTED[tensor.dtype]))
    return _text(tensor.name), _flag(tensor.dtype == ACT), accepted


def _sum(spec: OpSpec, axis: str) -> str:
    """An output axis as a sum of products; see `spec.TensorSpec`."""
    products = (_braces("Product", *(_factor(spec, f) for f in term.split("*"))) for term in axis.split("+"))
    return _braces("Sum", *products)


def _factor(spec: OpSpec, factor: str) -> str:
    if factor.isdigit():
        return _braces("Factor", '""', factor)
    known = {axis for tensor in spec.inputs for axis in tensor.axes} | set(spec.attributes)
    if factor not in known:
        raise BuildError(f"{spec.name} has an output axis '{factor}'", f"one of {', '.join(sorted(known))}")
    return _braces("Factor", _text(factor), "0")


def _braces(kind: str, *items: str) -> str:
    return f"{kind}{{{', '.join(items)}}}"


def _text(value: str) -> str:
    return json.dumps(value)


def _flag(value: bool) -> str:
    return str(value).lower()
