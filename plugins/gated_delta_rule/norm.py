"""The decode kernel with its neighbours in one launch, where a block owns a whole value head: the gated RMS norm behind
it, and the convolution in front."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.launch import DECODE_TOKENS
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

COLUMNS, MAX_WARPS = 16, 8  # of a warp, and of a block
TAPS = 4  # of the convolution


@dataclass(frozen=True)
class Norm:
    """The norm's own: its weight's type ("f32" or "bf16"), and its epsilon."""

    weight_dtype: str = "bf16"
    epsilon: float = 1e-6


def can_join(shape: Shape) -> bool:
    """Whether the norm behind a call of this shape can run in its launch."""
    fits = shape.value_dim % COLUMNS == 0 and 0 < shape.value_dim <= COLUMNS * MAX_WARPS
    return fits and 1 <= shape.tokens <= DECODE_TOKENS


def decode_norm(shape: Shape, norm: Norm, at: dict[str, int]) -> Launch:
    """`at`: as launch.decode without o, and z norm_weight y; all aligned to 16 bytes."""
    _check(shape)
    return _launch("norm", shape, (*pointers(at, "qkv"), *_arguments(shape, norm, at)))


def conv_decode_norm(shape: Shape, norm: Norm, conv_dtype: str, at: dict[str, int]) -> Launch:
    """The convolution in front of it as well; `conv_dtype` is that of its weight.

    `at`: as decode_norm without qkv, and x conv_weight conv_state conv_commit arrived, an int of each slot and key head
    that is 0 before and after.
    """
    _check(shape)
    conv = (*pointers(at, "x", "conv_weight"), *ints(conv_dtype == "bf16"), *pointers(at, "conv_state", "conv_commit"))
    return _launch("conv_norm", shape, (*conv, *_arguments(shape, norm, at), *pointers(at, "arrived")))


def _arguments(shape: Shape, norm: Norm, at: dict[str, int]) -> Arguments:
    """Of both, behind the ones of what makes qkv."""
    return (
        *pointers(at, "a", "b", "A_log", "dt_bias"),
        *ints(shape.A_log_dtype == "bf16", shape.dt_bias_dtype == "bf16"),
        *pointers(at, "S", "n_tokens", "n_commit", "z", "norm_weight"),
        *ints(norm.weight_dtype == "bf16"),
        *pointers(at, "y"),
        *ints(shape.tokens, shape.key_heads, shape.value_heads, shape.value_dim),
        ctypes.c_float(norm.epsilon),
    )


def _check(shape: Shape) -> None:
    found = f"{shape.tokens} tokens, value heads of {shape.value_dim}"
    require(can_join(shape), found, f"up to {DECODE_TOKENS}, multiples of {COLUMNS} up to {COLUMNS * MAX_WARPS}")


def _launch(kind: str, shape: Shape, args: Arguments) -> Launch:
    staged = shape.tokens * (2 * shape.key_dim + 3 * shape.value_dim + 4)  # q, k; v, z, o; gates
    shared, grid = 4 * (staged + shape.value_dim), (1, shape.value_heads, shape.slots)
    return Launch(f"gated_delta_rule_{kind}_{shape.dtype}", grid, 32 * shape.value_dim // COLUMNS, shared, args)
