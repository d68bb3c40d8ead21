"""Body of the normalised, rotated queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.plugins.bodies import Bodies, integers


def portable(attributes: Mapping[str, Any]) -> str:
    """RMSNormalization and RotaryEmbedding of queries and keys."""
    heads, kv_heads, dim = attributes["num_heads"], attributes["num_kv_heads"], attributes["head_dim"]

    def rotated(x: str, weight: str, count: int, y: str) -> str:
        return f"""
  {x}_w = Cast <to = 1> ({weight})
  {x}_scale = Add ({x}_w, unit)
  {x}_normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> ({x}, {x}_scale)
  {x}_to_turn, {x}_rest = Split <axis = -1> ({x}_normed, turned)
  {x}_first, {x}_second = Split <axis = -1, num_outputs = 2> ({x}_to_turn)
  {x}_a = Mul ({x}_first, cos_4d)
  {x}_b = Mul ({x}_second, sin_4d)
  {x}_c = Mul ({x}_second, cos_4d)
  {x}_d = Mul ({x}_first, sin_4d)
  {x}_left = Sub ({x}_a, {x}_b)
  {x}_right = Add ({x}_c, {x}_d)
  {x}_turned = Concat <axis = -1> ({x}_left, {x}_right, {x}_rest)
  {x}_flat = {integers(0, 0, count * dim)}
  {y} = Reshape ({x}_turned, {x}_flat)
"""

    return f"""
QkNormRope <num_heads, num_kv_heads, head_dim, epsilon> (q_gate, k, q_weight, k_weight, cos, sin) => (q, k_out, gate) {{
  unit = Constant <value_float: float = 1.0> ()
  head_axis = Constant <value_ints: ints = [2]> ()
  cos_4d = Unsqueeze (cos, head_axis)
  sin_4d = Unsqueeze (sin, head_axis)
  pairs = Shape <start = 2, end = 3> (cos)
  two = Constant <value_ints: ints = [2]> ()
  width = {integers(dim)}
  rotary = Mul (pairs, two)
  passed = Sub (width, rotary)
  turned = Concat <axis = 0> (rotary, passed)
  both_shape = {integers(0, 0, heads, 2 * dim)}
  both = Reshape (q_gate, both_shape)
  queries, gates = Split <axis = -1, num_outputs = 2> (both)
  gate_shape = {integers(0, 0, heads * dim)}
  gate = Reshape (gates, gate_shape)
  keys_shape = {integers(0, 0, kv_heads, dim)}
  keys = Reshape (k, keys_shape)
  {rotated("queries", "q_weight", heads, "q")}
  {rotated("keys", "k_weight", kv_heads, "k_out")}
}}
"""


BODIES = {"QkNormRope": Bodies(portable)}
