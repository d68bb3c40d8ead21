"""Bodies of the int4 linear. All sizes are attributes of the node, so one function serves every shape of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies
from deltart.plugins.int4_linear.reference import ZERO


def portable(attributes: Mapping[str, Any]) -> str:
    """Splits the bytes into nibbles, scales them by group, then multiplies; a runtime may fold the constant part."""
    return f"""
Int4GroupLinear <K, N, group_size> (x, weight_groups, weight_scale) => (y) {{
  sixteen_8 = Constant <value = uint8 {{16}}> ()
  low = Mod (weight_groups, sixteen_8)
  high = Div (weight_groups, sixteen_8)
  behind = Constant <value_ints: ints = [3]> ()
  low_4d = Unsqueeze (low, behind)
  high_4d = Unsqueeze (high, behind)
  nibbles = Concat <axis = 3> (low_4d, high_4d)
  wide = Cast <to = 1> (nibbles)
  zero = Constant <value_float: float = {ZERO}.0> ()
  integers = Sub (wide, zero)
  scale = Cast <to = 1> (weight_scale)
  value_axes = Constant <value_ints: ints = [2, 3]> ()
  scale_4d = Unsqueeze (scale, value_axes)
  values = Mul (integers, scale_4d)
  matrix = Constant <value_ints: ints = [0, -1]> ()
  W = Reshape (values, matrix)
  W_t = Transpose <perm = [1, 0]> (W)
  y = MatMul (x, W_t)
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


BODIES = {"Int4GroupLinear": Bodies(portable, lambda attributes: matmul_n_bits(0), torch=fast)}
