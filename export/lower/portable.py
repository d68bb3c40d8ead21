"""Portable bodies: each composite op as a function of standard ONNX ops, in float32, for any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deltart.export.lower import portable_linear as linear
from deltart.plugins.moe_experts import bodies as moe

# Token t of row b is real where t < n_tokens[b], committed where t < n_commit[b]: [B, T].
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
CausalConv1d (x, weight, state, n_commit) => (y, state_out) {
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


# The W-1 raw inputs before token n = n_commit[b]: rows n .. n+W-2 of the padded input.
CONV_STATE = """
  kept_length = Shape <start = 1, end = 2> (state)
  kept_axis = Constant <value_ints: ints = [0]> ()
  kept_0d = Squeeze (kept_length, kept_axis)
  kept_from = Constant <value_int: int = 0> ()
  kept_step = Constant <value_int: int = 1> ()
  kept = Range (kept_from, kept_0d, kept_step)
  counts_64 = Cast <to = 7> (n_commit)
  kept_last = Constant <value_ints: ints = [-1]> ()
  counts_2d = Unsqueeze (counts_64, kept_last)
  kept_rows = Add (counts_2d, kept)
  kept_index = Unsqueeze (kept_rows, kept_last)
  state_out = GatherND <batch_dims = 1> (padded, kept_index)
}
"""


def gated_delta_rule(attributes: Mapping[str, Any]) -> str:
    """The token recurrence as a Scan over T; beside the running state it carries the one that drafts don't touch."""
    k_heads, v_heads = attributes["num_k_heads"], attributes["num_v_heads"]
    k_dim, v_dim = attributes["head_k_dim"], attributes["head_v_dim"]
    return (
        """
GatedDeltaRule <num_k_heads, num_v_heads, head_k_dim, head_v_dim>
  (qkv, a, b, A_log, dt_bias, S, n_tokens, n_commit) => (o, S_out) {"""
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
  commits = Unsqueeze (n_commit, last_axis)
  committed = Less (steps, commits)
  S_last, S_out, o_4d = Scan <num_scan_inputs = 6, scan_input_axes = [1, 1, 1, 1, 1, 1], scan_output_axes = [1],
    body = token (S_t, S_kept, q_t, k_t, v_t, g_t, beta_t, committed_t) => (S_next, S_kept_next, o_t) {{
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
      state_axes = Constant <value_ints: ints = [1, 2, 3]> ()
      advances = Unsqueeze (committed_t, state_axes)
      S_kept_next = Where (advances, S_next, S_kept)
      q_row = Unsqueeze (q_t, row_axis)
      o_row = MatMul (q_row, S_next)
      o_t = Squeeze (o_row, row_axis)
    }}> (S, S, q, k, v, g, beta, committed)
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
    "Fp8BlockLinear": linear.fp8_block_linear,
    "MoeExperts": moe.moe_experts,
    "Fp8MoeExperts": moe.fp8_moe_experts,
    "Fp8BlockGateUp": linear.fp8_block_gate_up,
    "AttentionProjections": linear.attention_projections,
    "DeltaNetProjections": linear.delta_net_projections,
    "LmHead": linear.lm_head,
    "QkNormRope": qk_norm_rope,
}
