"""The routed experts with the residual sum and norm that follow them, a launch less than apart: in calls of up to eight
tokens, where a block of down has as many threads as the norm."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear.norm import TOKENS
from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.launch import check, down_block, experts, is_decode
from deltart.plugins.moe_experts.launch import workspace as experts_workspace
from deltart.plugins.residual_rms_norm.launch import BLOCK, MAX_WIDTH


def can_join(shape: Shape) -> bool:
    """Whether the norm behind experts of this shape can run in the launch of their down."""
    if not is_decode(shape) or shape.rows > TOKENS or shape.hidden > MAX_WIDTH:
        return False
    return 32 * down_block(shape, BLOCK // 32)[0] >= BLOCK


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays by name; `y` is the experts' result before it is added."""
    value = 2 if shape.dtype == "bf16" else 4
    return experts_workspace(shape) | {"y": value * shape.rows * shape.hidden}


def experts_norm(shape: Shape, norm_dtype: str, epsilon: float, at: dict[str, int]) -> list[Launch]:
    """One call.

    Args:
        norm_dtype: "bf16" or "f32", of norm_weight [hidden].
        at: the experts' tensors; residual, normed and sum [slots, tokens, hidden], sum of which may be residual;
            norm_weight; arrived, an int that is 0 before and after; and the arrays of `workspace`. All but arrived
            aligned to 16 bytes.

    Raises:
        BuildError: for a shape that `can_join` refuses, or that the experts' kernels do not take.
    """
    check(shape)
    found = f"{shape.rows} tokens of hidden {shape.hidden}, {shape.choices} experts each"
    expected = f"up to {TOKENS} tokens of up to {MAX_WIDTH}, and room for {BLOCK} threads a block"
    require(can_join(shape), found, expected)
    *before, down = experts(shape, at)
    warps, shared_bytes = down_block(shape, BLOCK // 32)
    args = (
        *down.args,
        *pointers(at, "residual", "norm_weight"),
        *ints(norm_dtype == "bf16"),
        *pointers(at, "normed", "sum"),
        ctypes.c_float(epsilon),
        *pointers(at, "arrived"),
    )
    name = f"moe_experts_down_norm_{shape.dtype}_{shape.stored}"
    return [*before, Launch(name, down.grid, 32 * warps, shared_bytes, args)]
