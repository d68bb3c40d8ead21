"""Which kernels serve a TensorRT call of the gated attention: bf16 activations and cache, any number of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.launch import attention, plan
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require


def _shape(call: Call) -> Shape:
    sizes = call.sizes
    require(call.dtypes["q"] == "bf16", f"{call.dtypes['q']} activations", "bf16")
    return Shape(
        slots=sizes["B"],
        tokens=sizes["T"],
        heads=sizes["num_heads"],
        kv_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        capacity=sizes["capacity"],
    )


def workspace_bytes(call: Call) -> int:
    """The most that any number of tokens up to this one takes: few tokens split the keys into more parts."""
    shape = _shape(call)
    return max(plan(replace(shape, tokens=tokens)).workspace_bytes() for tokens in range(1, shape.tokens + 1))


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    return "kernel.cu", attention(plan(_shape(call)), call.at)


KERNELS = {"GatedAttention": Kernel(Path(__file__).resolve().parent, ("kernel.cu",), workspace_bytes, launches)}
