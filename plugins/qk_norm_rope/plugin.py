"""Which kernel serves a TensorRT call of the normalised, rotated queries and keys: one for any number of tokens."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require
from deltart.plugins.qk_norm_rope.inputs import Shape
from deltart.plugins.qk_norm_rope.launch import rope


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    kinds = (dtypes["q_weight"], dtypes["k_weight"])
    require(kinds[0] == kinds[1], f"norm weights stored as {kinds[0]} and {kinds[1]}", "one type for both")
    shape = Shape(
        slots=sizes["B"],
        tokens=sizes["T"],
        heads=sizes["num_heads"],
        kv_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        rotary_dim=2 * sizes["P"],
        dtype=dtypes["q_gate"],
        parameter_dtype=kinds[0],
        epsilon=sizes["epsilon"],
    )
    return "kernel.cu", [rope(shape, call.at)]


KERNELS = {"QkNormRope": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
