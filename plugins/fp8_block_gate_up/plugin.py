"""Which kernels serve a TensorRT call of the gated pair of block-FP8 linears; they are those of fp8_block_linear."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins import fp8_block_linear
from deltart.plugins.fp8_block_gate_up.launch import gate_bytes, prefill
from deltart.plugins.fp8_block_linear import plugin as linear
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import gate_up
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require


def _shape(call: Call) -> Shape:
    kinds = (call.dtypes["weight_scale_inv"], call.dtypes["up_weight_scale_inv"])
    require(kinds[0] == kinds[1], f"scales stored as {kinds[0]} and {kinds[1]}", "one type for both")
    return linear.shape_of(call)


def workspace_bytes(call: Call) -> int:
    """What a linear takes, and the gate; nothing for few tokens."""
    shape = _shape(call)
    return 0 if linear.is_few(call, shape) else linear.scratch_bytes(call, shape) + gate_bytes(shape)


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call: few tokens take one launch, prompts the tile kernel twice and a product."""
    shape = _shape(call)
    if linear.is_few(call, shape):
        return "decode.cu", [gate_up(shape, call.at)]
    at, kernel = linear.scratch(call, shape), linear.tile_kernel(call)
    return kernel.source, prefill(shape, kernel, at | {"gate": at["end"]}, call.multiprocessors)


FOLDER = Path(str(fp8_block_linear.__file__)).parent
KERNEL = Kernel(FOLDER, linear.SOURCES, workspace_bytes, launches)
