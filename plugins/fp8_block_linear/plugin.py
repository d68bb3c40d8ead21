"""Which kernel serves a TensorRT call of the block-FP8 linear: by rows or by tiles, as the tokens are few or many."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import forward
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    shape = Shape(sizes["B"], sizes["T"], sizes["N"], sizes["K"], dtypes["x"], dtypes["weight_scale_inv"])
    source, one = forward(shape, call.at)
    return source, [one]


KERNEL = Kernel(Path(__file__).resolve().parent, ("decode.cu", "prefill.cu"), workspace_bytes, launches)
