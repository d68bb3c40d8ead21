"""Which kernels serve a call of each op of the plain linears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require
from deltart.plugins.linear.launch import gate_up, linear, silu_mul

Make = Callable[[Shape, dict[str, int]], Launch]


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def _kernel(make: Make) -> Kernel:
    def launches(call: Call) -> tuple[str, list[Launch]]:
        """The source and launch of one call."""
        sizes, dtypes = call.sizes, call.dtypes
        plain = sorted({kind for name, kind in dtypes.items() if name.endswith("weight")} - {"bf16"})
        require(not plain, f"weights stored as {' and '.join(plain)}", "bf16")
        dtype = dtypes["x"] if "x" in dtypes else dtypes["gate"]
        return "kernel.cu", [make(Shape(sizes["B"], sizes["T"], sizes["N"], sizes.get("K", 0), dtype), call.at)]

    return Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)


KERNELS = {"Linear": _kernel(linear), "LinearGateUp": _kernel(gate_up), "SiluMul": _kernel(silu_mul)}
