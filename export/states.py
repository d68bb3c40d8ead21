"""How states leave a block: the name they leave by, and the op that writes them."""

from __future__ import annotations

import onnx

from deltart.export.graph import Block, State
from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.spec import DOMAIN, OpSpec

OPS = {spec.name: spec for spec in MODEL_OPS}
NEXT = ".next"  # ends the name of the graph output that carries a state after the call


def state_output(state: State) -> str:
    """Name of the graph output that carries `state` after the call."""
    return state.name + NEXT


def writers(block: Block, function: onnx.FunctionProto) -> dict[str, OpSpec | None]:
    """By the name of each of the block's states, the op of `function` that may write it over its own input.

    None where the state leaves from another node.
    """
    results = function.output[len(block.outputs) :]
    return {state.name: _writer(function, name) for state, name in zip(block.states, results, strict=True)}


def _writer(function: onnx.FunctionProto, result: str) -> OpSpec | None:
    for node in (n for n in function.node if n.domain == DOMAIN and result in n.output):
        spec = OPS[node.op_type]
        alias = spec.outputs[list(node.output).index(result)].alias
        if alias is not None and result == f"{node.input[[t.name for t in spec.inputs].index(alias)]}_out":
            return spec
    return None
