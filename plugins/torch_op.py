"""Derives the torch custom op of an `OpSpec`: eager body, fake kernel, ONNX translation and ONNX schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import values

from deltart.plugins.spec import ACT, DOMAIN, F32, FP8, I32, SCALE, STORED, U8, VERSION, OpSpec

_TORCH_ATTRIBUTE = {int: "int", float: "float"}
_ONNX_ATTRIBUTE = {int: OpSchema.AttrType.INT, float: OpSchema.AttrType.FLOAT}
_TYPES = {
    ACT: ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"],
    STORED: ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"],
    SCALE: ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"],
    FP8: ["tensor(float8e4m3fn)", "tensor(int8)"],
    F32: ["tensor(float)"],
    I32: ["tensor(int32)"],
    U8: ["tensor(uint8)"],
}


def torch_op(spec: OpSpec) -> Callable[..., Any]:
    """Register `deltart::<name>` in torch and ONNX and return the callable.

    The eager body runs the op's float64 reference and casts the results, so a module built from these ops is
    itself a reference; when traced, a call becomes the single node `deltart::<name>`.
    """
    arguments = [f"Tensor {t.name}" for t in spec.inputs]
    arguments += [f"{_TORCH_ATTRIBUTE[kind]} {name}" for name, kind in spec.attributes.items()]
    results = ", ".join("Tensor" for _ in spec.outputs)
    schema = f"({', '.join(arguments)}) -> " + (f"({results})" if len(spec.outputs) > 1 else results)
    op = torch.library.custom_op(f"{DOMAIN}::{spec.name}", _eager(spec), mutates_args=(), schema=schema)
    op.register_fake(_fake(spec))
    onnx.defs.register_schema(_schema(spec))
    return op


def translation(spec: OpSpec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(torch overload, function emitting the composite node): an entry of torch.onnx's translation table."""
    node = getattr(values.Opset(DOMAIN, VERSION), spec.name)
    count = len(spec.inputs)

    def emit(*arguments: Any) -> Any:
        return node(*arguments[:count], **dict(zip(spec.attributes, arguments[count:], strict=True)))

    return getattr(getattr(torch.ops, DOMAIN), spec.name).default, emit


def _split(spec: OpSpec, arguments: tuple[Any, ...]) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    count = len(spec.inputs)
    return arguments[:count], dict(zip(spec.attributes, arguments[count:], strict=True))


def _output_dtype(spec: OpSpec, kind: str, tensors: tuple[torch.Tensor, ...]) -> torch.dtype:
    if kind == F32:
        return torch.float32
    return next(t.dtype for s, t in zip(spec.inputs, tensors, strict=True) if s.dtype == kind)


def _eager(spec: OpSpec) -> Callable[..., Any]:
    def body(*arguments: Any) -> Any:
        tensors, attributes = _split(spec, arguments)
        spec.bind_axes([t.shape for t in tensors], attributes)
        arrays = [(t.double() if t.is_floating_point() else t).cpu().numpy() for t in tensors]
        results = tuple(
            torch.from_numpy(array).to(_output_dtype(spec, s.dtype, tensors))
            for s, array in zip(spec.outputs, spec.reference(*arrays, **attributes), strict=True)
        )
        return results if len(results) > 1 else results[0]

    return body


def _fake(spec: OpSpec) -> Callable[..., Any]:
    def fake(*arguments: Any) -> Any:
        tensors, attributes = _split(spec, arguments)
        shapes = spec.output_shapes([t.shape for t in tensors], attributes)
        results = tuple(
            tensors[0].new_empty(shape, dtype=_output_dtype(spec, s.dtype, tensors))
            for s, shape in zip(spec.outputs, shapes, strict=True)
        )
        return results if len(results) > 1 else results[0]

    return fake


def _schema(spec: OpSpec) -> OpSchema:
    kinds: dict[str, list[str]] = {}

    def parameter(name: str, kind: str) -> OpSchema.FormalParameter:
        # Two stored weights of one op may have different dtypes, so each gets its own type variable.
        variable = f"{kind}_{name}" if kind in (STORED, SCALE, FP8) else kind
        kinds[variable] = _TYPES[kind]
        return OpSchema.FormalParameter(name, variable)

    return OpSchema(
        spec.name,
        DOMAIN,
        VERSION,
        doc=spec.doc,
        inputs=[parameter(t.name, t.dtype) for t in spec.inputs],
        outputs=[parameter(f"{t.name}_out" if t.alias else t.name, t.dtype) for t in spec.outputs],
        type_constraints=[(variable, types, "") for variable, types in kinds.items()],
        attributes=[OpSchema.Attribute(n, _ONNX_ATTRIBUTE[k], "", required=True) for n, k in spec.attributes.items()],
    )
