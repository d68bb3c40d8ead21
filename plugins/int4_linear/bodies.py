"""Bodies of the int4 linears. Sizes are the node's attributes or its inputs', so one function serves every shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies
from deltart.plugins.int4_linear.reference import ZERO


def dequantized(name: str, W_t: str) -> str:
    """The nodes that split a weight's bytes into nibbles, scale them by group and transpose the result: [K, N]."""
    w = name
    return f"""
  {w}_sixteen = Constant <value = uint8 {{16}}> ()
  {w}_low = Mod ({w}_groups, {w}_sixteen)
  {w}_high = Div ({w}_groups, {w}_sixteen)
  {w}_behind = Constant <value_ints: ints = [3]> ()
  {w}_low_4d = Unsqueeze ({w}_low, {w}_behind)
  {w}_high_4d = Unsqueeze ({w}_high, {w}_behind)
  {w}_nibbles = Concat <axis = 3> ({w}_low_4d, {w}_high_4d)
  {w}_wide = Cast <to = 1> ({w}_nibbles)
  {w}_zero = Constant <value_float: float = {ZERO}.0> ()
  {w}_integers = Sub ({w}_wide, {w}_zero)
  {w}_scale_wide = Cast <to = 1> ({w}_scale)
  {w}_value_axes = Constant <value_ints: ints = [2, 3]> ()
  {w}_scale_4d = Unsqueeze ({w}_scale_wide, {w}_value_axes)
  {w}_values = Mul ({w}_integers, {w}_scale_4d)
  {w}_matrix_shape = Constant <value_ints: ints = [0, -1]> ()
  {w}_matrix = Reshape ({w}_values, {w}_matrix_shape)
  {W_t} = Transpose <perm = [1, 0]> ({w}_matrix)
"""


def portable(attributes: Mapping[str, Any]) -> str:
    """Dequantizes the weight by its groups, then multiplies; a runtime may fold the constant part."""
    return f"""
Int4GroupLinear <K, N, group_size> (x, weight_groups, weight_scale) => (y) {{
  {dequantized("weight", "W_t")}
  y = MatMul (x, W_t)
}}
"""


def gate_up(attributes: Mapping[str, Any]) -> str:
    """Two linears, the first through SiLU."""
    return f"""
Int4GroupGateUp <group_size> (x, weight_groups, weight_scale, up_groups, up_scale) => (y) {{
  {dequantized("weight", "W_t")}
  {dequantized("up", "U_t")}
  gate = MatMul (x, W_t)
  up = MatMul (x, U_t)
  opened = Sigmoid (gate)
  activated = Mul (gate, opened)
  y = Mul (activated, up)
}}
"""


def lm_head(attributes: Mapping[str, Any]) -> str:
    """One product."""
    return f"""
Int4LmHead <group_size> (x, weight_groups, weight_scale) => (logits) {{
  {dequantized("weight", "W_t")}
  logits = MatMul (x, W_t)
}}
"""


def attention_projections(attributes: Mapping[str, Any]) -> str:
    """Three linears."""
    return f"""
Int4AttentionProjections <group_size> (x, q_groups, q_scale, k_groups, k_scale, v_groups, v_scale) => (q, k, v) {{
  {dequantized("q", "Q_t")}
  {dequantized("k", "K_t")}
  {dequantized("v", "V_t")}
  q = MatMul (x, Q_t)
  k = MatMul (x, K_t)
  v = MatMul (x, V_t)
}}
"""


def delta_net_projections(attributes: Mapping[str, Any]) -> str:
    """Four linears, two of them with plain weights."""
    return f"""
Int4DeltaNetProjections <group_size>
  (x, qkv_groups, qkv_scale, z_groups, z_scale, a_weight, b_weight) => (qkv, z, a, b) {{
  {dequantized("qkv", "QKV_t")}
  {dequantized("z", "Z_t")}
  a_wide = Cast <to = 1> (a_weight)
  b_wide = Cast <to = 1> (b_weight)
  A_t = Transpose <perm = [1, 0]> (a_wide)
  B_t = Transpose <perm = [1, 0]> (b_wide)
  qkv = MatMul (x, QKV_t)
  z = MatMul (x, Z_t)
  a = MatMul (x, A_t)
  b = MatMul (x, B_t)
}}
"""


def matmul_n_bits(accuracy_level: int) -> str:
    """ONNX Runtime's kernel over the vendor's bytes. 0: f32 arithmetic; 4: x is rounded to int8 by group first."""
    return f"""
Int4GroupLinear <K, N, group_size> (x, weight_groups, weight_scale) => (y) {{
  scale = Cast <to = 1> (weight_scale)
  y = com.microsoft.MatMulNBits
    <K: int = @K, N: int = @N, bits = 4, block_size: int = @group_size, accuracy_level = {accuracy_level}>
    (x, weight_groups, scale)
}}
"""


def fast(x: Tensor, weight_groups: Tensor, weight_scale: Tensor, K: int, N: int, group_size: int) -> Tensor:
    """The weight widened first."""
    nibbles = torch.stack([weight_groups & 15, weight_groups >> 4], -1).to(x.dtype) - ZERO
    return F.linear(x, (nibbles * weight_scale.to(x.dtype)[..., None, None]).view(N, K))


BODIES = {
    "Int4GroupLinear": Bodies(portable, lambda attributes: matmul_n_bits(0), torch=fast),
    "Int4GroupGateUp": Bodies(gate_up),
    "Int4LmHead": Bodies(lm_head),
    "Int4AttentionProjections": Bodies(attention_projections),
    "Int4DeltaNetProjections": Bodies(delta_net_projections),
}
