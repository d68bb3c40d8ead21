"""Which kernels serve a TensorRT call of the block-FP8 linear: few tokens or many, activations as they are or E4M3."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.fp8_block_linear import prefill as tiles
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import MOST_DECODE, forward
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


def is_few(call: Call, shape: Shape) -> bool:
    """Whether the call takes a kernel for few tokens, which needs no workspace."""
    return not quantized(call) and (shape.rows <= MOST_DECODE or shape.dtype == "f32")


def tile_kernel(call: Call) -> tiles.Kernel:
    """The kernel for many tokens on this GPU."""
    return tiles.w8a8_kernel(call.capability) if quantized(call) else tiles.W8A16


def _offsets(call: Call, shape: Shape) -> dict[str, int]:
    """Where the scratch arrays start in the workspace; the last, "end", is its size."""
    sizes: dict[str, int] = {}
    if quantized(call):  # by either kernel
        sizes = tiles.quantized_bytes(shape) | {"partial": tiles.most_partial_bytes(shape, tiles.PAIR)}
    elif not is_few(call, shape):
        sizes = {"partial": tiles.most_partial_bytes(shape, tiles.TILE)}
    at, end = {}, 0
    for name, size in sizes.items():
        at[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return at | {"end": end}


def scratch(call: Call, shape: Shape) -> dict[str, int]:
    """`call.at` with the scratch arrays of the widest weight's `shape`, and "end" behind them."""
    return call.at | {name: call.at["workspace"] + offset for name, offset in _offsets(call, shape).items()}


def scratch_bytes(call: Call, shape: Shape) -> int:
    """Bytes of these: sums of a split K, and the codes and scales of quantized activations."""
    return _offsets(call, shape)["end"]


def workspace_bytes(call: Call) -> int:
    """See scratch_bytes."""
    return scratch_bytes(call, shape_of(call))


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    shape = shape_of(call)
    if not quantized(call):
        return forward(shape, scratch(call, shape))
    kernel = tile_kernel(call)
    return kernel.source, tiles.prefill_w8a8(shape, kernel, scratch(call, shape), call.multiprocessors)


SOURCES = ("decode.cu", "prefill.cu", "prefill_wgmma.cu")
KERNEL = Kernel(Path(__file__).resolve().parent, SOURCES, workspace_bytes, launches)
