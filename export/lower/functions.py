"""The bodies of the op folders as ONNX functions, for the composite nodes that a graph really uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from deltart.errors import ExportError
from deltart.plugins.bodies import Body, bodies_of
from deltart.plugins.int4_linear.bodies import matmul_n_bits
from deltart.plugins.int4_linear.op import INT4_GROUP_LINEAR
from deltart.plugins.registry import FUSED_OPS, MODEL_OPS
from deltart.plugins.spec import DOMAIN

Lowering = Mapping[str, Body]  # by op

PORTABLE: Lowering = {spec.name: bodies_of(spec).portable for spec in (*MODEL_OPS, *FUSED_OPS)}
ORT: Lowering = {spec.name: bodies_of(spec).ort or bodies_of(spec).portable for spec in MODEL_OPS}
# The same with the activations of int4 linears rounded to int8.
ORT_INT8: Lowering = {**ORT, INT4_GROUP_LINEAR.name: lambda attributes: matmul_n_bits(4)}
# The ops that write their states over the old ones on ONNX Runtime.
ORT_IN_PLACE = frozenset(spec.name for spec in MODEL_OPS if bodies_of(spec).ort_in_place)


def composite_functions(nodes: Iterable[onnx.NodeProto], bodies: Lowering) -> list[onnx.FunctionProto]:
    """One function per composite op among `nodes`, specialised to its attributes.

    Raises:
        ExportError: two nodes of one op need different bodies (a model has one shape per such op), or `bodies`
            lacks the op.
    """
    used: dict[str, tuple[dict[str, Any], str]] = {}  # attributes and text, by op
    for node in nodes:
        if node.domain != DOMAIN:
            continue
        if node.op_type not in bodies:
            raise ExportError(f"this target has no body for {node.op_type}", f"one of {', '.join(bodies)}")
        mine = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in used and used[node.op_type][0] == mine:
            continue
        text = bodies[node.op_type](mine)
        known, first = used.setdefault(node.op_type, (mine, text))
        if first != text:
            raise ExportError(f"{node.op_type} is used with {known} and with {mine}", "one set of sizes per model")
    return [parse_function(text) for _, text in used.values()]


def parse_function(text: str) -> onnx.FunctionProto:
    """An ONNX function in the composite domain from its text, importing only the domains it uses."""
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : 24]>{text}')
    domains = {node.domain for node in _all_nodes(function.node)} - {""}
    function.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(domains))
    return function


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    found = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            found += _all_nodes(attribute.g.node)
    return found
