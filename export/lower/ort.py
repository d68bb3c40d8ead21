"""ONNX Runtime: composite nodes with their contrib bodies, and the tower's attention by the kernel that needs no S x S.

The standard Attention holds all scores of a frame at once; MultiHeadAttention works through them block by block.
"""

from __future__ import annotations

from typing import Any

import onnx

CONTRIB = "com.microsoft"
PLAIN = {"q_num_heads", "kv_num_heads", "scale"}  # attributes that have their like


def use_multi_head_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, with every Attention of as many heads of q as of k over rows [F, S, W] as a MultiHeadAttention."""
    for function in model.functions:
        replaced = [node for node in function.node if _is_plain(node)]
        for node in replaced:
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            del node.attribute[:]
            node.op_type, node.domain = "MultiHeadAttention", CONTRIB
            node.attribute.append(onnx.helper.make_attribute("num_heads", values["q_num_heads"]))
            if values.get("scale"):
                node.attribute.append(onnx.helper.make_attribute("scale", values["scale"]))
            del node.input[3:], node.output[1:]
        if replaced:
            _add_domain(function.opset_import)
            _add_domain(model.opset_import)
    return model


def _is_plain(node: onnx.NodeProto) -> bool:
    if node.op_type != "Attention" or node.domain or any(node.input[3:]):
        return False
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    other = {name for name, value in values.items() if value and name not in PLAIN}
    return not other and values.get("q_num_heads", 0) == values.get("kv_num_heads", 0) > 0


def _add_domain(imports: Any) -> None:
    if CONTRIB not in {entry.domain for entry in imports}:
        imports.append(onnx.helper.make_opsetid(CONTRIB, 1))
