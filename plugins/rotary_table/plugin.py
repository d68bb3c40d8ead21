"""Which kernel serves a call of the rotary table: one for any number of tokens, bf16 results."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch
from deltart.plugins.rotary_table.launch import table


def workspace_bytes(call: Call) -> int:
    """None."""
    return 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes = call.sizes
    return "kernel.cu", [table(sizes["B"] * sizes["T"], sizes["P"], sizes["scale"], call.at)]


KERNELS = {"RotaryTable": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
