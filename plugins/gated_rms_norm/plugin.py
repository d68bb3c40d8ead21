"""Which kernel serves a TensorRT call of the gated RMS norm: one for any number of tokens."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.gated_rms_norm.inputs import Shape
from deltart.plugins.gated_rms_norm.launch import norm
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    shape = Shape(
        slots=sizes["B"],
        tokens=sizes["T"],
        heads=sizes["N"] // sizes["D"],
        head_dim=sizes["D"],
        dtype=dtypes["x"],
        parameter_dtype=dtypes["weight"],
        epsilon=sizes["epsilon"],
    )
    return "kernel.cu", [norm(shape, call.at)]


KERNELS = {"GatedRMSNorm": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
