"""Which kernel serves a call of the norms between blocks: one for any number of tokens."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch
from deltart.plugins.residual_rms_norm.inputs import Shape
from deltart.plugins.residual_rms_norm.launch import norm


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    shape = Shape(sizes["B"] * sizes["T"], sizes["D"], dtypes["h"], dtypes["weight"], sizes["epsilon"])
    return "kernel.cu", [norm(shape, call.at)]


KERNELS = {
    name: Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)
    for name in ("ResidualRmsNorm", "RmsNorm")
}
