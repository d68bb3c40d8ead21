"""Portable bodies: each composite op as a function of standard ONNX ops, in float32, for any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Token t of row b is real where t < n_tokens[b]: [B, T].
REAL = """
  length = Shape <start = 1, end = 2> ({x})
  scalar = Constant <value_ints: ints = [0]> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  length_0d = Squeeze (length, scalar)
  steps_64 = Range (zero, length_0d, one)
  steps = Cast <to = 6> (steps_64)
  last_axis = Constant <value_ints: ints = [-1]> ()
  counts = Unsqueeze (n_tokens, last_axis)
  real = Less (steps, counts)
"""


def causal_conv1d(attributes: Mapping[str, Any]) -> str:
    """Windows of W raw inputs, gathered and weighted."""
    return (
        """
CausalConv1d (x, weight, state, n_tokens) => (y, state_out) {
  padded = Concat <axis = 1> (state, x)
  taps_first = Constant <value_ints: ints = [0]> ()
  length = Shape <start = 1, end = 2> (x)
  width = Shape <start = 2, end = 3> (weight)
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  length_0d = Squeeze (length, taps_first)
  width_0d = Squeeze (width, taps_first)
  steps = Range (zero, length_0d, one)
  taps = Range (zero, width_0d, one)
  last_axis = Constant <value_ints: ints = [-1]> ()
  steps_2d = Unsqueeze (steps, last_axis)
  index = Add (steps_2d, taps)
  windows = Gather <axis = 1> (padded, index)
  kernel = Cast <to = 1> (weight)
  middle = Constant <value_ints: ints = [1]> ()
  kernel_2d = Squeeze (kernel, middle)
  kernel_t = Transpose <perm = [1, 0]> (kernel_2d)
  weighted = Mul (windows, kernel_t)
  tap_axis = Constant <value_ints: ints = [2]> ()
  conv = ReduceSum <keepdims = 0> (weighted, tap_axis)
  gate = Sigmoid (conv)
  y = Mul (conv, gate)
"""
        + CONV_STATE
    )


# The W-1 raw inputs before token n_tokens[b]: rows n .. n+W-2 of the padded input.
CONV_STATE = """
  kept_length = Shape <start = 1, end = 2> (state)
  kept_axis = Constant <value_ints: ints = [0]> ()
  kept_0d = Squeeze (kept_length, kept_axis)
  kept_from = Constant <value_int: int = 0> ()
  kept_step = Constant <value_int: int = 1> ()
  kept = Range (kept_from, kept_0d, kept_step)
  counts_64 = Cast <to = 7> (n_tokens)
  kept_last = Constant <value_ints: ints = [-1]> ()
  counts_2d = Unsqueeze (counts_64, kept_last)
  kept_rows = Add (counts_2d, kept)
  kept_index = Unsqueeze (kept_rows, kept_last)
  state_out = GatherND <batch_dims = 1> (padded, kept_index)
}
"""


def gated_delta_rule(attributes: Mapping[str, Any]) -> str:
    """The token recurrence as a Scan over T."""
    k_heads, v_heads = attributes["num_k_heads"], attributes["num_v_heads"]
    k_dim, v_dim = attributes["head_k_dim"], attributes["head_v_dim"]
    return (
        """
GatedDeltaRule <num_k_heads, num_v_heads, head_k_dim, head_v_dim>
  (qkv, a, b, A_log, dt_bias, S, n_tokens) => (o, S_out) {"""
        + REAL.format(x="qkv")
        + f"""
  real_3d = Unsqueeze (real, last_axis)
  mask = Cast <to = 1> (real_3d)
  A_log_f = Cast <to = 1> (A_log)
  dt_bias_f = Cast <to = 1> (dt_bias)
  A = Exp (A_log_f)
  shifted = Add (a, dt_bias_f)
  rate = Softplus (shifted)
  decay = Mul (A, rate)
  decay_neg = Neg (decay)
  g = Mul (decay_neg, mask)
  beta_all = Sigmoid (b)
  beta = Mul (beta_all, mask)
  sizes = Constant <value_ints: ints = [{k_heads * k_dim}, {k_heads * k_dim}, {v_heads * v_dim}]> ()
  q_flat, k_flat, v_flat = Split <axis = -1> (qkv, sizes)
  k_shape = Constant <value_ints: ints = [0, 0, {k_heads}, 1, {k_dim}]> ()
  group = Constant <value_ints: ints = [1, 1, 1, {v_heads // k_heads}, 1]> ()
  head_shape = Constant <value_ints: ints = [0, 0, {v_heads}, {k_dim}]> ()
  v_shape = Constant <value_ints: ints = [0, 0, {v_heads}, {v_dim}]> ()
  epsilon = Constant <value_float: float = 1e-6> ()
  scale = Constant <value_float: float = {k_dim**-0.5!r}> ()
  q_5d = Reshape (q_flat, k_shape)
  q_sum = ReduceSumSquare <keepdims = 1> (q_5d, last_axis)
  q_eps = Add (q_sum, epsilon)
  q_norm = Sqrt (q_eps)
  q_unit = Div (q_5d, q_norm)
  q_scaled = Mul (q_unit, scale)
  q_tiled = Tile (q_scaled, group)
  q = Reshape (q_tiled, head_shape)
  k_5d = Reshape (k_flat, k_shape)
  k_sum = ReduceSumSquare <keepdims = 1> (k_5d, last_axis)
  k_eps = Add (k_sum, epsilon)
  k_norm = Sqrt (k_eps)
  k_unit = Div (k_5d, k_norm)
  k_tiled = Tile (k_unit, group)
  k = Reshape (k_tiled, head_shape)
  v = Reshape (v_flat, v_shape)
  S_out, o_4d = Scan <num_scan_inputs = 5, scan_input_axes = [1, 1, 1, 1, 1], scan_output_axes = [1],
    body = token (S_t, q_t, k_t, v_t, g_t, beta_t) => (S_next, o_t) {{
      matrix_axes = Constant <value_ints: ints = [-2, -1]> ()
      row_axis = Constant <value_ints: ints = [-2]> ()
      column_axis = Constant <value_ints: ints = [-1]> ()
      alpha = Exp (g_t)
      alpha_4d = Unsqueeze (alpha, matrix_axes)
      decayed = Mul (S_t, alpha_4d)
      k_row = Unsqueeze (k_t, row_axis)
      k_column = Unsqueeze (k_t, column_axis)
      recalled_row = MatMul (k_row, decayed)
      recalled = Squeeze (recalled_row, row_axis)
      error = Sub (v_t, recalled)
      beta_3d = Unsqueeze (beta_t, column_axis)
      d = Mul (error, beta_3d)
      d_row = Unsqueeze (d, row_axis)
      update = Mul (k_column, d_row)
      S_next = Add (decayed, update)
      q_row = Unsqueeze (q_t, row_axis)
      o_row = MatMul (q_row, S_next)
      o_t = Squeeze (o_row, row_axis)
    }}> (S, q, k, v, g, beta)
  flat = Constant <value_ints: ints = [0, 0, {v_heads * v_dim}]> ()
  o = Reshape (o_4d, flat)
}}
"""
    )


def gated_rms_norm(attributes: Mapping[str, Any]) -> str:
    """RMSNormalization per head, times silu(z)."""
    return """
GatedRMSNorm <epsilon> (x, weight, z) => (y) {
  leading = Constant <value_ints: ints = [0, 0, -1]> ()
  width = Shape (weight)
  heads = Concat <axis = 0> (leading, width)
  x_heads = Reshape (x, heads)
  scale = Cast <to = 1> (weight)
  normed_heads = RMSNormalization <axis = -1, epsilon: float = @epsilon> (x_heads, scale)
  normed = Reshape (normed_heads, leading)
  gate = Sigmoid (z)
  silu = Mul (z, gate)
  y = Mul (normed, silu)
}
"""


def gated_attention(attributes: Mapping[str, Any]) -> str:
    """Writes the new rows into the cache, then attends over the whole capacity under a mask."""
    return (
        """
GatedAttention <num_heads, num_kv_heads, head_dim>
  (q, k, v, gate, k_cache, v_cache, past_len, n_tokens) => (o, k_cache_out, v_cache_out) {"""
        + attend_over_capacity(attributes, "attended", "k_cache_out", "v_cache_out")
        + """
  opened = Sigmoid (gate)
  o = Mul (attended, opened)
}
"""
    )


def attend_over_capacity(attributes: Mapping[str, Any], o: str, k_out: str, v_out: str) -> str:
    """The nodes that compute ungated attention `o` and the new caches, for any batch, length and past."""
    kv_heads, dim = attributes["num_kv_heads"], attributes["head_dim"]
    group = attributes["num_heads"] // kv_heads
    return f"""
  first = Constant <value_ints: ints = [0]> ()
  last = Constant <value_ints: ints = [-1]> ()
  from_0 = Constant <value_int: int = 0> ()
  by_1 = Constant <value_int: int = 1> ()
  t_size = Shape <start = 1, end = 2> (q)
  t_size_0d = Squeeze (t_size, first)
  capacity = Shape <start = 2, end = 3> (k_cache)
  capacity_0d = Squeeze (capacity, first)
  rows = Range (from_0, capacity_0d, by_1)
  tokens = Range (from_0, t_size_0d, by_1)
  past_64 = Cast <to = 7> (past_len)
  past_2d = Unsqueeze (past_64, last)
  new_64 = Cast <to = 7> (n_tokens)
  new_2d = Unsqueeze (new_64, last)
  source = Sub (rows, past_2d)
  is_new = GreaterOrEqual (source, from_0)
  is_real = Less (source, new_2d)
  written = And (is_new, is_real)
  cache_axes = Constant <value_ints: ints = [1, 3]> ()
  written_4d = Unsqueeze (written, cache_axes)
  last_token = Sub (t_size_0d, by_1)
  source_clipped = Clip (source, from_0, last_token)
  source_index = Unsqueeze (source_clipped, last)
  kv_shape = Constant <value_ints: ints = [0, 0, {kv_heads}, {dim}]> ()
  k_rows = GatherND <batch_dims = 1> (k, source_index)
  k_rows_4d = Reshape (k_rows, kv_shape)
  k_new = Transpose <perm = [0, 2, 1, 3]> (k_rows_4d)
  {k_out} = Where (written_4d, k_new, k_cache)
  v_rows = GatherND <batch_dims = 1> (v, source_index)
  v_rows_4d = Reshape (v_rows, kv_shape)
  v_new = Transpose <perm = [0, 2, 1, 3]> (v_rows_4d)
  {v_out} = Where (written_4d, v_new, v_cache)
  q_shape = Constant <value_ints: ints = [0, 0, {kv_heads}, {group}, {dim}]> ()
  q_5d = Reshape (q, q_shape)
  q_heads = Transpose <perm = [0, 2, 3, 1, 4]> (q_5d)
  group_axis = Constant <value_ints: ints = [2]> ()
  k_t = Transpose <perm = [0, 1, 3, 2]> ({k_out})
  k_5d = Unsqueeze (k_t, group_axis)
  v_5d = Unsqueeze ({v_out}, group_axis)
  products = MatMul (q_heads, k_5d)
  scale = Constant <value_float: float = {dim**-0.5!r}> ()
  scores = Mul (products, scale)
  ends = Add (past_2d, tokens)
  ends_3d = Unsqueeze (ends, last)
  visible = LessOrEqual (rows, ends_3d)
  head_axes = Constant <value_ints: ints = [1, 2]> ()
  visible_5d = Unsqueeze (visible, head_axes)
  hidden = Constant <value_float: float = -3.0e38> ()
  masked = Where (visible_5d, scores, hidden)
  weights = Softmax <axis = -1> (masked)
  mixed = MatMul (weights, v_5d)
  mixed_t = Transpose <perm = [0, 3, 1, 2, 4]> (mixed)
  flat = Constant <value_ints: ints = [0, 0, {kv_heads * group * dim}]> ()
  {o} = Reshape (mixed_t, flat)
"""


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


def fp8_block_linear(attributes: Mapping[str, Any]) -> str:
    """Dequantizes the weight by its block scales, then multiplies; a runtime may fold the constant part."""
    return f"""
Fp8BlockLinear <quantize_activations> (x, weight, weight_scale_inv) => (y) {{
  {dequantized("weight", "weight_scale_inv", "W_t")}
  {_activations(attributes)}
  y = MatMul (x_used, W_t)
}}
"""


def fp8_block_gate_up(attributes: Mapping[str, Any]) -> str:
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


def lm_head(attributes: Mapping[str, Any]) -> str:
    """One product."""
    return """
LmHead (x, weight) => (logits) {
  W = Cast <to = 1> (weight)
  W_t = Transpose <perm = [1, 0]> (W)
  logits = MatMul (x, W_t)
}
"""


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


def qk_norm_rope(attributes: Mapping[str, Any]) -> str:
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
  {x}_flat = Constant <value_ints: ints = [0, 0, {count * dim}]> ()
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
  width = Constant <value_ints: ints = [{dim}]> ()
  rotary = Mul (pairs, two)
  passed = Sub (width, rotary)
  turned = Concat <axis = 0> (rotary, passed)
  both_shape = Constant <value_ints: ints = [0, 0, {heads}, {2 * dim}]> ()
  both = Reshape (q_gate, both_shape)
  queries, gates = Split <axis = -1, num_outputs = 2> (both)
  gate_shape = Constant <value_ints: ints = [0, 0, {heads * dim}]> ()
  gate = Reshape (gates, gate_shape)
  keys_shape = Constant <value_ints: ints = [0, 0, {kv_heads}, {dim}]> ()
  keys = Reshape (k, keys_shape)
  {rotated("queries", "q_weight", heads, "q")}
  {rotated("keys", "k_weight", kv_heads, "k_out")}
}}
"""


Lowering = Mapping[str, Callable[[Mapping[str, Any]], str]]

BODIES: Lowering = {
    "CausalConv1d": causal_conv1d,
    "GatedDeltaRule": gated_delta_rule,
    "GatedRMSNorm": gated_rms_norm,
    "GatedAttention": gated_attention,
    "Fp8BlockLinear": fp8_block_linear,
    "Fp8BlockGateUp": fp8_block_gate_up,
    "AttentionProjections": attention_projections,
    "DeltaNetProjections": delta_net_projections,
    "LmHead": lm_head,
    "QkNormRope": qk_norm_rope,
}
