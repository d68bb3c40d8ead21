"""Which kernels serve a TensorRT call of the gated pair of block-FP8 linears; they are those of fp8_block_linear."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins import fp8_block_linear
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import MOST_DECODE, gate_up, gate_up_prefill, gate_up_workspace
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require


def _shape(call: Call) -> Shape:
    sizes, dtypes = call.sizes, call.dtypes
    kinds = (dtypes["weight_scale_inv"], dtypes["up_weight_scale_inv"])
    require(kinds[0] == kinds[1], f"scales stored as {kinds[0]} and {kinds[1]}", "one type for both")
    return Shape(sizes["B"], sizes["T"], sizes["N"], sizes["K"], dtypes["x"], kinds[0])


def workspace_bytes(call: Call) -> int:
    """The gate of a prompt; none for few tokens."""
    shape = _shape(call)
    return gate_up_workspace(shape) if shape.rows > MOST_DECODE else 0


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call: few tokens take one launch, prompts the tile kernel twice and a product."""
    shape = _shape(call)
    if shape.rows <= MOST_DECODE or shape.dtype == "f32":
        return "decode.cu", [gate_up(shape, call.at)]
    return "prefill.cu", gate_up_prefill(shape, call.at | {"gate": call.at["workspace"]})


FOLDER = Path(str(fp8_block_linear.__file__)).parent
KERNEL = Kernel(FOLDER, ("decode.cu", "prefill.cu"), workspace_bytes, launches)
