"""Which kernels serve a TensorRT call of the gated pair of block-FP8 linears; they are those of fp8_block_linear."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins import fp8_block_linear
from deltart.plugins.fp8_block_gate_up.launch import gate_bytes, prefill
from deltart.plugins.fp8_block_linear import plugin as linear
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import MOST_DECODE, gate_up
from deltart.plugins.fp8_block_linear.prefill import W8A16, w8a8_kernel
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require


def _shape(call: Call) -> Shape:
    kinds = (call.dtypes["weight_scale_inv"], call.dtypes["up_weight_scale_inv"])
    require(kinds[0] == kinds[1], f"scales stored as {kinds[0]} and {kinds[1]}", "one type for both")
    return linear.shape_of(call)


def _fused(call: Call) -> bool:
    """Whether one launch computes both products: few tokens, activations as they are."""
    shape = _shape(call)
    return not linear.quantized(call) and (shape.rows <= MOST_DECODE or shape.dtype == "f32")


def workspace_bytes(call: Call) -> int:
    """What a linear takes, and the gate; nothing for few tokens."""
    return 0 if _fused(call) else linear.workspace_bytes(call) + gate_bytes(_shape(call))


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call: few tokens take one launch, prompts the tile kernel twice and a product."""
    shape = _shape(call)
    if _fused(call):
        return "decode.cu", [gate_up(shape, call.at)]
    at = linear.scratch(call)
    at["gate"] = at["end"]
    kernel = w8a8_kernel(call.capability) if linear.quantized(call) else W8A16
    return kernel.source, prefill(shape, kernel, at, call.multiprocessors)


FOLDER = Path(str(fp8_block_linear.__file__)).parent
KERNEL = Kernel(FOLDER, linear.SOURCES, workspace_bytes, launches)
