"""Bodies of the block-FP8 linears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies
from deltart.plugins.fp8_linear.reference import BLOCK


def dequantized(weight: str, scale: str, W_t: str) -> str:
    """The nodes that expand a weight by its block scales and transpose it: [K, N]."""
    w = weight
    return f"""
  {w}_block = Constant <value_int: int = 128> ()
  {w}_zero = Constant <value_int: int = 0> ()
  {w}_one = Constant <value_int: int = 1> ()
  {w}_first = Constant <value_ints: ints = [0]> ()
  {w}_n = Shape <start = 0, end = 1> ({w})
  {w}_k = Shape <start = 1, end = 2> ({w})
  {w}_n_0d = Squeeze ({w}_n, {w}_first)
  {w}_k_0d = Squeeze ({w}_k, {w}_first)
  {w}_rows = Range ({w}_zero, {w}_n_0d, {w}_one)
  {w}_columns = Range ({w}_zero, {w}_k_0d, {w}_one)
  {w}_row_block = Div ({w}_rows, {w}_block)
  {w}_column_block = Div ({w}_columns, {w}_block)
  {w}_scale = Cast <to = 1> ({scale})
  {w}_scale_rows = Gather <axis = 0> ({w}_scale, {w}_row_block)
  {w}_scale_all = Gather <axis = 1> ({w}_scale_rows, {w}_column_block)
  {w}_values = Cast <to = 1> ({w})
  {w}_expanded = Mul ({w}_values, {w}_scale_all)
  {W_t} = Transpose <perm = [1, 0]> ({w}_expanded)
"""


def linear(attributes: Mapping[str, Any]) -> str:
    """Dequantizes the weight by its block scales, then multiplies; a runtime may fold the constant part."""
    return f"""
Fp8BlockLinear <quantize_activations> (x, weight, weight_scale_inv) => (y) {{
  {dequantized("weight", "weight_scale_inv", "W_t")}
  {_activations(attributes)}
  y = MatMul (x_used, W_t)
}}
"""


def gate_up(attributes: Mapping[str, Any]) -> str:
    """Two linears, the first through SiLU."""
    return f"""
Fp8BlockGateUp <quantize_activations> (x, weight, weight_scale_inv, up_weight, up_weight_scale_inv) => (y) {{
  {dequantized("weight", "weight_scale_inv", "W_t")}
  {dequantized("up_weight", "up_weight_scale_inv", "U_t")}
  {_activations(attributes)}
  gate = MatMul (x_used, W_t)
  up = MatMul (x_used, U_t)
  opened = Sigmoid (gate)
  activated = Mul (gate, opened)
  y = Mul (activated, up)
}}
"""


def attention_projections(attributes: Mapping[str, Any]) -> str:
    """Three linears."""
    return f"""
AttentionProjections <quantize_activations>
  (x, q_weight, q_scale_inv, k_weight, k_scale_inv, v_weight, v_scale_inv) => (q, k, v) {{
  {dequantized("q_weight", "q_scale_inv", "Q_t")}
  {dequantized("k_weight", "k_scale_inv", "K_t")}
  {dequantized("v_weight", "v_scale_inv", "V_t")}
  {_activations(attributes)}
  q = MatMul (x_used, Q_t)
  k = MatMul (x_used, K_t)
  v = MatMul (x_used, V_t)
}}
"""


def delta_net_projections(attributes: Mapping[str, Any]) -> str:
    """Four linears, two of them with plain weights."""
    return f"""
DeltaNetProjections <quantize_activations>
  (x, qkv_weight, qkv_scale_inv, z_weight, z_scale_inv, a_weight, b_weight) => (qkv, z, a, b) {{
  {dequantized("qkv_weight", "qkv_scale_inv", "QKV_t")}
  {dequantized("z_weight", "z_scale_inv", "Z_t")}
  {_activations(attributes)}
  a_wide = Cast <to = 1> (a_weight)
  b_wide = Cast <to = 1> (b_weight)
  A_t = Transpose <perm = [1, 0]> (a_wide)
  B_t = Transpose <perm = [1, 0]> (b_wide)
  qkv = MatMul (x_used, QKV_t)
  z = MatMul (x_used, Z_t)
  a = MatMul (x, A_t)
  b = MatMul (x, B_t)
}}
"""


def _activations(attributes: Mapping[str, Any]) -> str:
    return QUANTIZED_ACTIVATIONS if attributes["quantize_activations"] else "  x_used = Identity (x)"


# x as E4M3 with scale amax / 448 per token and 128 of K, back in float.
QUANTIZED_ACTIVATIONS = """
  last = Constant <value_ints: ints = [-1]> ()
  blocks_shape = Constant <value_ints: ints = [0, 0, -1, 128]> ()
  flat_shape = Constant <value_ints: ints = [0, 0, -1]> ()
  no_padding = Constant <value_ints: ints = [0, 0, 0, 0, 0]> ()
  largest = Constant <value_float: float = 448.0> ()
  nothing = Constant <value_float: float = 0.0> ()
  unit = Constant <value_float: float = 1.0> ()
  first = Constant <value_ints: ints = [0]> ()
  block = Constant <value_int: int = 128> ()
  x_width = Shape <start = 2, end = 3> (x)
  x_width_negative = Neg (x_width)
  missing = Mod (x_width_negative, block)
  padding = Concat <axis = 0> (no_padding, missing)
  x_padded = Pad (x, padding)
  x_blocks = Reshape (x_padded, blocks_shape)
  x_size = Abs (x_blocks)
  x_most = ReduceMax <keepdims = 1> (x_size, last)
  x_any = Greater (x_most, nothing)
  x_fitting = Div (x_most, largest)
  x_scale = Where (x_any, x_fitting, unit)
  x_scaled = Div (x_blocks, x_scale)
  codes = Cast <to = 17> (x_scaled)
  x_values = Cast <to = 1> (codes)
  x_rounded_blocks = Mul (x_values, x_scale)
  x_rounded_flat = Reshape (x_rounded_blocks, flat_shape)
  two = Constant <value_ints: ints = [2]> ()
  x_used = Slice (x_rounded_flat, first, x_width, two)"""


def fast(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, quantize_activations: int) -> Tensor:
    """The weight widened first; activations as they are."""
    if quantize_activations:
        raise ValueError("calibration runs on activations as they are")
    return F.linear(x, widened(weight, weight_scale_inv, x.dtype))


def widened(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] times its block scales, in `dtype`."""
    scale = scale.to(dtype).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return weight.to(dtype) * scale[: weight.shape[0], : weight.shape[1]]


BODIES = {
    "Fp8BlockLinear": Bodies(linear, torch=fast),
    "Fp8BlockGateUp": Bodies(gate_up),
    "AttentionProjections": Bodies(attention_projections),
    "DeltaNetProjections": Bodies(delta_net_projections),
}
