"""Which kernels serve a TensorRT call of the block-FP8 linear: few tokens or many, activations as they are or E4M3."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import MOST_DECODE, forward
from deltart.plugins.fp8_block_linear.prefill import (
    PAIR,
    TILE,
    most_partial_bytes,
    prefill_w8a8,
    quantized_bytes,
    w8a8_kernel,
)
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch

ALIGNMENT = 256  # of the arrays in the workspace


def shape_of(call: Call) -> Shape:
    """The call's sizes and types."""
    sizes, dtypes = call.sizes, call.dtypes
    return Shape(sizes["B"], sizes["T"], sizes["N"], sizes["K"], dtypes["x"], dtypes["weight_scale_inv"])


def quantized(call: Call) -> bool:
    """Whether activations are rounded to E4M3."""
    return bool(call.sizes["quantize_activations"])


def _offsets(call: Call) -> dict[str, int]:
    """Where the scratch arrays start in the workspace; the last, "end", is its size."""
    shape, end, at = shape_of(call), 0, {}
    if quantized(call):  # by either kernel
        sizes = quantized_bytes(shape) | {"partial": most_partial_bytes(shape, PAIR)}
    else:
        sizes = {"partial": most_partial_bytes(shape, TILE) if shape.rows > MOST_DECODE else 0}
    for name, size in sizes.items():
        at[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return at | {"end": end}


def scratch(call: Call) -> dict[str, int]:
    """`call.at` with the scratch arrays, and "end" behind them."""
    return call.at | {name: call.at["workspace"] + offset for name, offset in _offsets(call).items()}


def workspace_bytes(call: Call) -> int:
    """Sums of a split K, and the codes and scales of quantized activations."""
    return _offsets(call)["end"]


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    shape, at = shape_of(call), scratch(call)
    if not quantized(call):
        return forward(shape, at)
    kernel = w8a8_kernel(call.capability)
    return kernel.source, prefill_w8a8(shape, kernel, at, call.multiprocessors)


SOURCES = ("decode.cu", "prefill.cu", "prefill_wgmma.cu")
KERNEL = Kernel(Path(__file__).resolve().parent, SOURCES, workspace_bytes, launches)
