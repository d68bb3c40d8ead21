"""A TensorRT call of a linear: its shape, whether it is decode's or prefill's, and where its scratch arrays lie."""

from __future__ import annotations

from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.activations import AS_STORED, rounds
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.launch import MAX_DECODE
from deltart.plugins.kernel_call import Call

ALIGNMENT = 256  # of the arrays in the workspace


def shape_of(call: Call) -> Shape:
    """The call's sizes and types."""
    sizes, dtypes = call.sizes, call.dtypes
    return Shape(sizes["B"], sizes["T"], sizes["N"], sizes["K"], dtypes["x"], dtypes["weight_scale_inv"])


def may_quantize(call: Call) -> bool:
    """Whether activations are rounded to E4M3 on some GPU."""
    return call.sizes["quantize_activations"] != AS_STORED


def is_quantized(call: Call) -> bool:
    """Whether they are on this one."""
    return rounds(call.sizes["quantize_activations"], call.capability)


def is_decode(call: Call, shape: Shape) -> bool:
    """Whether the call takes a decode kernel on this GPU."""
    return not is_quantized(call) and _is_small(shape)


def needs_scratch(call: Call, shape: Shape) -> bool:
    """Whether the call takes more than a decode kernel on some GPU."""
    return may_quantize(call) or not _is_small(shape)


def _is_small(shape: Shape) -> bool:
    return shape.rows <= MAX_DECODE or shape.dtype == "f32"


def tile_kernel(call: Call) -> tiles.TileKernel:
    """The prefill kernel on this GPU."""
    return tiles.w8a8_kernel(call.capability) if is_quantized(call) else tiles.W8A16


def _offsets(call: Call, shape: Shape) -> dict[str, int]:
    """Where the scratch arrays start in the workspace; the last, "end", is its size."""
    sizes: dict[str, int] = {}
    if may_quantize(call):  # by any kernel
        sizes = tiles.quantized_bytes(shape) | {"partial": tiles.max_partial_bytes(shape, tiles.PAIR)}
    elif needs_scratch(call, shape):
        sizes = {"partial": tiles.max_partial_bytes(shape, tiles.TILE)}
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
