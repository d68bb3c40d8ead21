"""What the kernels of the routed experts read of their weights."""

from __future__ import annotations

from deltart.plugins.launch import Arguments, ints, pointers
from deltart.plugins.moe_experts.inputs import Shape

NULL = {"none": 0}


def stored(shape: Shape, at: dict[str, int]) -> Arguments:
    """All weights, scales and their sizes."""
    routed = ("experts", "experts", "experts_scale") if shape.stored == "e4m3" else ("gate_up", "down", "none")
    shared, scales = ("none",) * 3, ("none",) * 3
    if shape.shared:
        shared = ("shared_gate", "shared_up", "shared_down")
        if shape.stored == "e4m3":
            scales = ("shared_gate_scale_inv", "shared_up_scale_inv", "shared_down_scale_inv")
    return (
        *pointers(NULL | at, *routed, *shared, *scales),
        *ints(shape.scale_dtype == "bf16", shape.stored_experts, shape.hidden, shape.width, shape.shared),
    )
