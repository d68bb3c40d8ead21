"""Neighbouring nodes that one kernel computes in calls of a few tokens, whose launches cost as much as their work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from deltart.plugins.fp8_linear import inputs as fp8
from deltart.plugins.fp8_linear import norm as fp8_norm
from deltart.plugins.fp8_linear.op import FP8_BLOCK_LINEAR, FP8_LINEAR_NORM
from deltart.plugins.int4_linear import inputs as int4
from deltart.plugins.int4_linear import norm as int4_norm
from deltart.plugins.int4_linear.op import INT4_GROUP_LINEAR, INT4_LINEAR_NORM
from deltart.plugins.residual_rms_norm.op import RESIDUAL_RMS_NORM
from deltart.plugins.spec import DOMAIN
from deltart.runtime.backends.gpu.engine_manifest import Binding

JOINED = {FP8_BLOCK_LINEAR.name: FP8_LINEAR_NORM, INT4_GROUP_LINEAR.name: INT4_LINEAR_NORM}  # with the norm behind it
ARRIVED = "/arrived"  # the count of blocks that are done, of every launch in turn: 0 between them


def joined(
    nodes: Sequence[onnx.NodeProto], border: Mapping[str, Binding], results: Sequence[str], rows: int
) -> list[onnx.NodeProto]:
    """`nodes`, each quantized linear with the residual norm behind it as one, where the largest call of `rows` tokens
    lets them and nothing else reads the linear's result."""
    readers = Counter(name for node in nodes for name in node.input)
    linears = {
        node.output[0]: node
        for node in nodes
        if node.op_type in JOINED and _is_small(node, border, rows) and not _quantizes(node)
    }
    made: list[onnx.NodeProto] = []
    for node in nodes:
        linear = linears.get(node.input[0]) if node.op_type == RESIDUAL_RMS_NORM.name else None
        if linear is None or readers[linear.output[0]] > 1 or linear.output[0] in results:
            made.append(node)
            continue
        made = [other for other in made if other is not linear]
        made.append(_as_one(linear, node))
    if len(made) == len(nodes):
        return made
    count = onnx.numpy_helper.from_array(np.zeros(1, np.int32))
    return [onnx.helper.make_node("Constant", [], [ARRIVED], ARRIVED, value=count), *made]


def _is_small(linear: onnx.NodeProto, border: Mapping[str, Binding], rows: int) -> bool:
    n, *inner = map(int, border[linear.input[1]].axes)
    if linear.op_type == FP8_BLOCK_LINEAR.name:
        return fp8_norm.can_join(fp8.Shape(1, rows, n, inner[0]))
    groups, half = inner
    return int4_norm.can_join(int4.Shape(1, rows, n, groups * half * 2, half * 2))


def _quantizes(linear: onnx.NodeProto) -> bool:
    return any(a.name == "quantize_activations" and a.i for a in linear.attribute)


def _as_one(linear: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    _, h, weight = norm.input
    inputs = [*linear.input, h, weight, ARRIVED]
    op = JOINED[linear.op_type]
    one = onnx.helper.make_node(op.name, inputs, list(norm.output), linear.name, domain=DOMAIN)
    one.attribute.extend(a for a in (*linear.attribute, *norm.attribute) if a.name in op.attributes)
    return one
