"""Which kernel serves a call of the LM head: logits alone, of a bf16 weight or an E4M3 one."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require
from deltart.plugins.lm_head.inputs import Shape
from deltart.plugins.lm_head.launch import logits


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    is_fp8 = "weight_scale" in dtypes
    stored = dtypes["weight_scale" if is_fp8 else "weight"]
    require(stored == "bf16", f"a {'scale' if is_fp8 else 'weight'} stored as {stored}", "bf16")
    shape = Shape(
        rows=sizes["B"] * sizes["L"],
        vocabulary=sizes["V"],
        k=sizes["K"],
        limit=sizes["V"],
        dtype=dtypes["x"],
        weight_dtype="e4m3" if is_fp8 else "bf16",
    )
    return "kernel.cu", [logits(shape, call.at)]


KERNEL = Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)
KERNELS = {"LmHead": KERNEL, "Fp8LmHead": KERNEL}
