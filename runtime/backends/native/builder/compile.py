"""One native plan from one lowered graph: every node an op with a kernel, every tensor with its place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from deltart.dtypes import BY_NAME, BY_ONNX, BY_SHORT
from deltart.errors import BuildError, DeltaRTError
from deltart.plugins.kernel_call import Call, addresses, kernel_of
from deltart.plugins.registry import NATIVE_OPS, OPS
from deltart.plugins.spec import ACT, DOMAIN, F32, FP8, I32, I64, SCALE, STORED, U8, OpSpec
from deltart.runtime.backends.gpu.engine_manifest import Binding, Profile, read_binding
from deltart.runtime.backends.native.builder.arena import Life, place
from deltart.runtime.backends.native.builder.join import joined
from deltart.runtime.backends.native.plan import Constant, NativePlan, Placed, Step

SPECS = {spec.name: spec for spec in (*OPS, *NATIVE_OPS)}
ACCEPTED = {
    ACT: ("bf16",), STORED: ("bf16", "f32"), SCALE: ("bf16", "f32", "f16"), FP8: ("i8",), U8: ("i8",), F32: ("f32",),
    I32: ("i32",), I64: ("i64",),
}  # fmt: skip
SMALL = {"shared_limit": 99 << 10, "capability": 80, "multiprocessors": 1}  # the least that a GPU of ours gives
SOMEWHERE = 1 << 40  # an address for launches that are only counted

Axes = list[str | int]


class _Axis(str):
    """The name of an axis whose size a call decides; a product or sum with it alone is itself."""

    def __rmul__(self, one: Any) -> _Axis:
        assert one == 1, f"{one} x {self}"
        return self

    def __radd__(self, nothing: Any) -> _Axis:
        assert nothing == 0, f"{nothing} + {self}"
        return self


@dataclass(frozen=True)
class Compiled:
    """A plan, its border without roles, and its steps by op."""

    plan: NativePlan
    bindings: list[Binding]
    ops: Mapping[str, int]


@dataclass
class _Graph:
    """What is known of each tensor so far, and how long those of the block live."""

    dtypes: dict[str, str] = field(default_factory=dict)
    axes: dict[str, Axes] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)


def compile_plan(content: bytes, profile: Profile) -> Compiled:
    """The plan of the ONNX model `content`, lowered for native plans, for calls of `profile`.

    Raises:
        BuildError: a node is no op with a kernel, reads what is not there yet, or has sizes or types that its kernel
            does not take; it is named.
    """
    graph = onnx.load_model_from_string(content).graph
    inputs, outputs = ([read_binding(v) for v in values] for values in (graph.input, graph.output))
    largest = {axis: sizes[2] for axis, sizes in profile.axes.items()}
    known, constants, steps, launches = _Graph(), dict[str, Constant](), list[Step](), 0
    for binding in inputs:
        known.dtypes[binding.name], known.axes[binding.name] = BY_NAME[binding.dtype].short, binding.axes
    bound = {binding.name for binding in (*inputs, *outputs)}
    workspaces: list[Life] = []
    nodes = joined(graph.node, {b.name: b for b in inputs}, [b.name for b in outputs], largest)
    for node in nodes:
        if node.domain == "" and node.op_type == "Constant":
            name, constant = node.output[0], _constant(node)
            constants[name] = constant
            known.dtypes[name], known.axes[name] = constant.dtype, list(constant.shape)
            continue
        spec, number = _spec(node), len(steps)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        _add_outputs(known, node, spec, attributes, number)
        try:
            nbytes, count = _measured(known, node, spec, attributes, largest)
        except (DeltaRTError, ValueError) as error:
            raise BuildError(f"node '{node.name}' ({node.op_type}): {error}", "sizes and types of its kernel") from None
        launches += count
        workspaces.append(Life(str(number), nbytes, number, number))
        steps.append(Step(node.name, node.op_type, attributes, list(node.input), list(node.output), 0))
    inner = [name for name in known.first if name not in bound]
    lives = [Life(f"/{n}", _nbytes(known, n, largest), known.first[n], known.last[n]) for n in inner]
    offsets, arena = place([*lives, *workspaces])
    plan = NativePlan(
        steps=[Step(**{**vars(step), "workspace": offsets[str(i)]}) for i, step in enumerate(steps)],
        tensors={name: Placed(known.dtypes[name], known.axes[name], offsets[f"/{name}"]) for name in inner},
        constants=constants,
        arena_bytes=arena,
        launches=launches,
    )
    return Compiled(plan, [*inputs, *outputs], dict(Counter(step.op for step in steps)))


def _spec(node: onnx.NodeProto) -> OpSpec:
    if node.domain != DOMAIN or node.op_type not in SPECS:
        where = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise BuildError(f"node '{node.name}' is {where}", "an op with a kernel: see plugins/registry.py")
    return SPECS[node.op_type]


def _constant(node: onnx.NodeProto) -> Constant:
    value = node.attribute[0].t
    if node.attribute[0].name != "value" or value.data_type not in BY_ONNX:
        raise BuildError(f"node '{node.name}' holds a constant of an unknown kind", "a tensor of a known type")
    return Constant.of(onnx.numpy_helper.to_array(value), BY_ONNX[value.data_type].short)


def _add_outputs(known: _Graph, node: onnx.NodeProto, spec: OpSpec, attributes: Mapping[str, Any], number: int) -> None:
    """Types and axes of what a node makes; and what it reads, it reads as the last so far."""
    for tensor, name in zip(spec.inputs, node.input, strict=True):
        if name not in known.dtypes:
            raise BuildError(f"node '{node.name}' reads '{name}', which nothing before it makes", "a sorted graph")
        if known.dtypes[name] not in ACCEPTED[tensor.dtype]:
            found = f"node '{node.name}' ({spec.name}) reads '{name}' as {tensor.name}, of {known.dtypes[name]}"
            raise BuildError(found, " or ".join(ACCEPTED[tensor.dtype]))
        known.last[name] = number
    try:
        shapes = [[_Axis(a) if isinstance(a, str) else a for a in known.axes[name]] for name in node.input]
        made = spec.output_shapes(shapes, attributes)
    except ValueError as error:
        raise BuildError(f"node '{node.name}': {error}", "inputs that fit together") from None
    for tensor, name, axes in zip(spec.outputs, node.output, made, strict=True):
        known.dtypes[name] = ACCEPTED[tensor.dtype][0]
        known.axes[name] = [str(axis) if isinstance(axis, str) else int(axis) for axis in axes]
        known.first[name] = known.last[name] = number


def _measured(
    known: _Graph, node: onnx.NodeProto, spec: OpSpec, attributes: Mapping[str, Any], largest: Mapping[str, int]
) -> tuple[int, int]:
    """Bytes of workspace and number of launches of a node's largest call."""
    shapes = [[largest[a] if isinstance(a, str) else a for a in known.axes[name]] for name in node.input]
    dtypes = {tensor.name: known.dtypes[name] for tensor, name in zip(spec.inputs, node.input, strict=True)}
    somewhere = [SOMEWHERE] * (len(spec.inputs) + len(spec.outputs))
    at = addresses(spec, somewhere[: len(spec.inputs)], somewhere[len(spec.inputs) :]) | {"workspace": SOMEWHERE}
    call, kernel = Call(spec.bind_axes(shapes, attributes), dtypes, at, **SMALL), kernel_of(spec)
    return kernel.workspace_bytes(call), len(kernel.launches(call)[1])


def _nbytes(known: _Graph, name: str, largest: Mapping[str, int]) -> int:
    sizes: Sequence[int] = [largest[a] if isinstance(a, str) else a for a in known.axes[name]]
    return math.prod(sizes) * BY_SHORT[known.dtypes[name]].itemsize
