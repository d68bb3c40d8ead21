"""Which kernel serves a TensorRT call of the LM head: logits alone, bf16 weight."""

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
    require(dtypes["weight"] == "bf16", f"a weight stored as {dtypes['weight']}", "bf16")
    shape = Shape(
        rows=sizes["B"] * sizes["L"],
        vocabulary=sizes["V"],
        k=sizes["K"],
        limit=sizes["V"],
        dtype=dtypes["x"],
    )
    return "kernel.cu", [logits(shape, call.at)]


KERNELS = {"LmHead": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
