"""Which kernel serves a TensorRT call of the causal convolution: one for any number of tokens."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.causal_conv1d.inputs import Shape
from deltart.plugins.causal_conv1d.launch import forward
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    shape = Shape(sizes["B"], sizes["T"], sizes["C"], dtypes["x"], dtypes["weight"])
    return "kernel.cu", [forward(shape, call.at)]


KERNELS = {"CausalConv1d": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
