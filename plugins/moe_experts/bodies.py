"""Bodies of the routed experts: in ONNX a Scan over the slots, which takes an expert's weights without copying others.

An `If` inside does the work only where a token chose the slot's expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies
from deltart.plugins.fp8_linear.bodies import dequantized, widened
from deltart.plugins.fp8_linear.reference import BLOCK


def moe_experts(attributes: Mapping[str, Any]) -> str:
    """Experts in two stored tensors, slot s holding expert s."""
    return f"""
MoeExperts <num_experts_per_tok, hidden_size, intermediate_size>
  (x, logits, n_tokens, gate_up, down) => (y) {{
{_plain_experts(attributes, "y")}
}}
"""


def fp8_moe_experts(attributes: Mapping[str, Any]) -> str:
    """Experts in a region of the vendor's file, each down, gate and up with their scales."""
    return f"""
Fp8MoeExperts <num_experts_per_tok, hidden_size, intermediate_size, quantize_activations>
  (x, logits, n_tokens, experts, experts_scale, slot_expert) => (y) {{
{_fp8_experts(attributes, "y")}
}}
"""


def sparse_moe(attributes: Mapping[str, Any]) -> str:
    """The same, and the shared expert."""
    return f"""
SparseMoe <num_experts_per_tok, hidden_size, intermediate_size>
  (x, logits, n_tokens, gate_up, down, shared_gate, shared_up, shared_down, shared_expert_gate) => (y) {{
{_plain_experts(attributes, "routed_y")}
{"".join(_transposed(part) for part in SHARED)}
{_shared_expert(attributes)}
}}
"""


def fp8_sparse_moe(attributes: Mapping[str, Any]) -> str:
    """The same of block-FP8 weights."""
    return f"""
Fp8SparseMoe <num_experts_per_tok, hidden_size, intermediate_size, quantize_activations>
  (x, logits, n_tokens, experts, experts_scale, slot_expert, shared_gate, shared_gate_scale_inv, shared_up,
   shared_up_scale_inv, shared_down, shared_down_scale_inv, shared_expert_gate) => (y) {{
{_fp8_experts(attributes, "routed_y")}
{"".join(dequantized(part, f"{part}_scale_inv", f"{part}_t") for part in SHARED)}
{_shared_expert(attributes)}
}}
"""


SHARED = ("shared_gate", "shared_up", "shared_down")


def _shared_expert(attributes: Mapping[str, Any]) -> str:
    """y of routed_y, x, the transposed weights and the `real` tokens [B, T]."""
    read_x, x = _read(attributes, "x", 3)
    read_activated, activated = _read(attributes, "shared_activated", 3)
    return f"""{read_x}
  shared_gate_y = MatMul ({x}, shared_gate_t)
  shared_up_y = MatMul ({x}, shared_up_t)
  shared_opened = Sigmoid (shared_gate_y)
  shared_silu = Mul (shared_gate_y, shared_opened)
  shared_activated = Mul (shared_silu, shared_up_y){read_activated}
  shared_y = MatMul ({activated}, shared_down_t)
  own_gate_wide = Cast <to = 1> (shared_expert_gate)
  own_gate_t = Transpose <perm = [1, 0]> (own_gate_wide)
  own_gate_y = MatMul (x, own_gate_t)
  own_gate = Sigmoid (own_gate_y)
  shared_weighted = Mul (shared_y, own_gate)
  all_y = Add (routed_y, shared_weighted)
  real_3d = Unsqueeze (real, last)
  no_y = Constant <value_float: float = 0.0> ()
  y = Where (real_3d, all_y, no_y)"""


def _read(attributes: Mapping[str, Any], name: str, rank: int) -> tuple[str, str]:
    """(nodes, name) of what a product reads of the activations `name`: all, or with `quantize_activations` what E4M3
    leaves, with a scale of amax / 448 per row and 128 of its values."""
    if not attributes.get("quantize_activations"):
        return "", name
    to, kept = f"{name}_read", "0, " * (rank - 1)  # a 0 keeps the axis
    nodes = f"""
  {to}_unpadded = Constant <value_ints: ints = [{"0, " * (2 * rank - 2)}0]> ()
  {to}_block = Constant <value_int: int = {BLOCK}> ()
  {to}_width = Shape <start = {rank - 1}, end = {rank}> ({name})
  {to}_negative = Neg ({to}_width)
  {to}_missing = Mod ({to}_negative, {to}_block)
  {to}_padding = Concat <axis = 0> ({to}_unpadded, {to}_missing)
  {to}_padded = Pad ({name}, {to}_padding)
  {to}_shape = Constant <value_ints: ints = [{kept}-1, {BLOCK}]> ()
  {to}_blocks = Reshape ({to}_padded, {to}_shape)
  {to}_size = Abs ({to}_blocks)
  {to}_last = Constant <value_ints: ints = [-1]> ()
  {to}_most = ReduceMax <keepdims = 1> ({to}_size, {to}_last)
  {to}_nothing = Constant <value_float: float = 0.0> ()
  {to}_any = Greater ({to}_most, {to}_nothing)
  {to}_largest = Constant <value_float: float = 448.0> ()
  {to}_fitting = Div ({to}_most, {to}_largest)
  {to}_unit = Constant <value_float: float = 1.0> ()
  {to}_scale = Where ({to}_any, {to}_fitting, {to}_unit)
  {to}_scaled = Div ({to}_blocks, {to}_scale)
  {to}_codes = Cast <to = 17> ({to}_scaled)
  {to}_values = Cast <to = 1> ({to}_codes)
  {to}_wide = Mul ({to}_values, {to}_scale)
  {to}_flat_shape = Constant <value_ints: ints = [{kept}-1]> ()
  {to}_flat = Reshape ({to}_wide, {to}_flat_shape)
  {to}_from = Constant <value_ints: ints = [0]> ()
  {to}_axis = Constant <value_ints: ints = [{rank - 1}]> ()
  {to} = Slice ({to}_flat, {to}_from, {to}_width, {to}_axis)"""
    return nodes, to


def _transposed(weight: str) -> str:
    return f"""
  {weight}_wide = Cast <to = 1> ({weight})
  {weight}_t = Transpose <perm = [1, 0]> ({weight}_wide)"""


def _plain_experts(attributes: Mapping[str, Any], y: str) -> str:
    weights = """
        gate_up_weight = Cast <to = 1> (gate_up_stored)
        down_weight = Cast <to = 1> (down_stored)"""
    return f"""
  one_slot = Constant <value_int: int = 1> ()
  from_slot = Constant <value_int: int = 0> ()
  slots_1d = Shape <start = 0, end = 1> (down)
  slots_axis = Constant <value_ints: ints = [0]> ()
  slots = Squeeze (slots_1d, slots_axis)
  slot_expert_64 = Range (from_slot, slots, one_slot)
  slot_expert = Cast <to = 6> (slot_expert_64)
{scan(attributes, ("gate_up", "down"), weights, y)}"""


def _fp8_experts(attributes: Mapping[str, Any], y: str) -> str:
    hidden, width = attributes["hidden_size"], attributes["intermediate_size"]
    weights = _whole_blocks(hidden, width) if hidden % BLOCK == width % BLOCK == 0 else _partial_blocks(hidden, width)
    return scan(attributes, ("experts", "experts_scale"), weights, y)


def scan(attributes: Mapping[str, Any], stored: tuple[str, ...], weights: str, y: str) -> str:
    """`y` of `slot_expert` and the `stored` tensors; `weights` makes gate_up_weight and down_weight of a slot."""
    hidden = attributes["hidden_size"]
    read_taken, taken = _read(attributes, "taken", 2)
    read_activated, activated = _read(attributes, "activated", 2)
    return f"""
  row_shape = Constant <value_ints: ints = [-1, {hidden}]> ()
  x_rows = Reshape (x, row_shape)
  expert_count = Shape <start = 2, end = 3> (logits)
  every_row = Constant <value_ints: ints = [-1]> ()
  logit_shape = Concat <axis = 0> (every_row, expert_count)
  logit_rows = Reshape (logits, logit_shape)
  k = Constant <value_ints: ints = [{attributes["num_experts_per_tok"]}]> ()
  best, best_expert = TopK <axis = -1, largest = 1, sorted = 1> (logit_rows, k)
  share = Softmax <axis = -1> (best)
  length = Shape <start = 1, end = 2> (x)
  first = Constant <value_ints: ints = [0]> ()
  length_0d = Squeeze (length, first)
  from_0 = Constant <value_int: int = 0> ()
  by_1 = Constant <value_int: int = 1> ()
  steps = Range (from_0, length_0d, by_1)
  counts_64 = Cast <to = 7> (n_tokens)
  last = Constant <value_ints: ints = [-1]> ()
  counts = Unsqueeze (counts_64, last)
  real = Less (steps, counts)
  real_shape = Constant <value_ints: ints = [-1, 1]> ()
  real_rows = Reshape (real, real_shape)
  nowhere = Constant <value_int: int = -1> ()
  routed_64 = Where (real_rows, best_expert, nowhere)
  routed = Cast <to = 6> (routed_64)
  slot_axes = Constant <value_ints: ints = [1, 2]> ()
  slots_3d = Unsqueeze (slot_expert, slot_axes)
  pairs = Equal (slots_3d, routed)
  pairs_8 = Cast <to = 3> (pairs)
  is_hit_8 = ReduceMax <keepdims = 0> (pairs_8, slot_axes)
  is_hit = Cast <to = 9> (is_hit_8)
  row_count = Shape (x_rows)
  nothing = ConstantOfShape <value = float[1] {{0.0}}> (row_count)
  y_rows = Scan <num_scan_inputs = {2 + len(stored)}, body = slot
    (float[N, H] sum, bool hit, bool[N, K] chosen_by, {", ".join(f"{name}_stored" for name in stored)}) => (sum_out) {{
      sum_out = If (hit) <
        then_branch = work () => (added) {{
        places = NonZero (chosen_by)
        tokens, ranks = Split <axis = 0, num_outputs = 2> (places)
        token_axis = Constant <value_ints: ints = [0]> ()
        tokens_1d = Squeeze (tokens, token_axis)
        taken = Gather <axis = 0> (x_rows, tokens_1d){read_taken}
        places_t = Transpose <perm = [1, 0]> (places)
        share_1d = GatherND (share, places_t)
        share_axis = Constant <value_ints: ints = [1]> ()
        share_2d = Unsqueeze (share_1d, share_axis)
{weights}
        gate_and_up = Gemm <transB = 1> ({taken}, gate_up_weight)
        gate, up = Split <axis = 1, num_outputs = 2> (gate_and_up)
        opened = Sigmoid (gate)
        silu = Mul (gate, opened)
        activated = Mul (silu, up){read_activated}
        mixed = Gemm <transB = 1> ({activated}, down_weight)
        weighted = Mul (mixed, share_2d)
        tokens_2d = Unsqueeze (tokens_1d, share_axis)
        added = ScatterND <reduction = "add"> (sum, tokens_2d, weighted)
        }},
        else_branch = idle () => (kept) {{
        kept = Identity (sum)
        }}>
    }}> (nothing, is_hit, pairs, {", ".join(stored)})
  x_shape = Shape (x)
  {y} = Reshape (y_rows, x_shape)"""


def _whole_blocks(hidden: int, width: int) -> str:
    """The weights of a slot by DequantizeLinear, 128 of a row with one scale: it runs on all threads, Cast on one."""
    rows, columns = hidden // BLOCK, width // BLOCK
    size = rows * columns * BLOCK  # groups of 128 in one matrix
    return f"""
        one_and_two = Constant <value_ints: ints = [1, 2]> ()
        scales = Cast <to = 1> (experts_scale_stored)
        down_scale, gate_up_scale = Split <axis = 0> (scales, one_and_two)
        flat = Constant <value_ints: ints = [-1]> ()
        down_blocks = Constant <value_ints: ints = [{rows}, 1, {columns}]> ()
        down_groups = Constant <value_ints: ints = [{rows}, {BLOCK}, {columns}]> ()
        down_scale_3d = Reshape (down_scale, down_blocks)
        down_scale_rows = Expand (down_scale_3d, down_groups)
        down_scale_1d = Reshape (down_scale_rows, flat)
        gate_up_blocks = Constant <value_ints: ints = [{2 * columns}, 1, {rows}]> ()
        gate_up_groups = Constant <value_ints: ints = [{2 * columns}, {BLOCK}, {rows}]> ()
        gate_up_scale_3d = Reshape (gate_up_scale, gate_up_blocks)
        gate_up_scale_rows = Expand (gate_up_scale_3d, gate_up_groups)
        gate_up_scale_1d = Reshape (gate_up_scale_rows, flat)
        group_scale = Concat <axis = 0> (down_scale_1d, gate_up_scale_1d)
        group_shape = Constant <value_ints: ints = [{3 * size}, {BLOCK}]> ()
        groups = Reshape (experts_stored, group_shape)
        values = DequantizeLinear <axis = 0> (groups, group_scale)
        sizes = Constant <value_ints: ints = [{size}, {2 * size}]> ()
        down_values, gate_up_values = Split <axis = 0> (values, sizes)
        down_shape = Constant <value_ints: ints = [{hidden}, {width}]> ()
        down_weight = Reshape (down_values, down_shape)
        gate_up_shape = Constant <value_ints: ints = [{2 * width}, {hidden}]> ()
        gate_up_weight = Reshape (gate_up_values, gate_up_shape)"""


def _partial_blocks(hidden: int, width: int) -> str:
    """The weights of a slot where 128 does not divide its sizes."""
    return f"""
        one_and_two = Constant <value_ints: ints = [1, 2]> ()
        codes = Cast <to = 1> (experts_stored)
        scales = Cast <to = 1> (experts_scale_stored)
        down_codes, gate_up_codes = Split <axis = 0> (codes, one_and_two)
        down_scale, gate_up_scale = Split <axis = 0> (scales, one_and_two)
{_expanded("down", 1, hidden, width)}{_expanded("gate_up", 2, width, hidden)}"""


def _expanded(part: str, count: int, rows: int, columns: int) -> str:
    """{part}_weight [count * rows, columns]: `count` matrices with a scale per block, one below the other."""
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    row_block = ", ".join(str(m * down + row // BLOCK) for m in range(count) for row in range(rows))
    column_block = ", ".join(str(column // BLOCK) for column in range(columns))
    return f"""
        {part}_shape = Constant <value_ints: ints = [{count * rows}, {columns}]> ()
        {part}_2d = Reshape ({part}_codes, {part}_shape)
        {part}_scale_shape = Constant <value_ints: ints = [{count * down}, {across}]> ()
        {part}_scale_2d = Reshape ({part}_scale, {part}_scale_shape)
        {part}_row_block = Constant <value_ints: ints = [{row_block}]> ()
        {part}_column_block = Constant <value_ints: ints = [{column_block}]> ()
        {part}_scale_rows = Gather <axis = 0> ({part}_scale_2d, {part}_row_block)
        {part}_scale_all = Gather <axis = 1> ({part}_scale_rows, {part}_column_block)
        {part}_weight = Mul ({part}_2d, {part}_scale_all)"""


def fast(
    x: Tensor, logits: Tensor, n_tokens: Tensor, gate_up: Tensor, down: Tensor,
    num_experts_per_tok: int, hidden_size: int, intermediate_size: int,
) -> Tensor:  # fmt: skip
    """The experts one after the other, each over its tokens."""

    def weights(slot: int) -> tuple[Tensor, Tensor]:
        return gate_up[slot].to(x.dtype), down[slot].to(x.dtype)

    return _routed(x, logits, n_tokens, num_experts_per_tok, range(len(down)), weights)


def fast_fp8(
    x: Tensor, logits: Tensor, n_tokens: Tensor, experts: Tensor, experts_scale: Tensor, slot_expert: Tensor,
    num_experts_per_tok: int, hidden_size: int, intermediate_size: int, quantize_activations: int,
) -> Tensor:  # fmt: skip
    """The experts one after the other, each over its tokens; activations as they are."""
    if quantize_activations:
        raise ValueError("calibration runs on activations as they are")
    rows, columns = -(-hidden_size // BLOCK), -(-intermediate_size // BLOCK)

    def expanded(slot: int, part: int, shape: tuple[int, int], blocks: tuple[int, int]) -> Tensor:
        scale = experts_scale[slot, part].view(blocks)
        return widened(experts[slot, part].view(shape), scale, x.dtype)

    def weights(slot: int) -> tuple[Tensor, Tensor]:
        across = (intermediate_size, hidden_size)
        gate, up = (expanded(slot, part, across, (columns, rows)) for part in (1, 2))
        return torch.cat([gate, up]), expanded(slot, 0, (hidden_size, intermediate_size), (rows, columns))

    return _routed(x, logits, n_tokens, num_experts_per_tok, slot_expert.tolist(), weights)


def _routed(
    x: Tensor, logits: Tensor, n_tokens: Tensor, count: int, numbers: Sequence[int],
    weights: Callable[[int], tuple[Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    """The experts `numbers` over the tokens that chose them; weights(slot) is (gate above up, down)."""
    rows, real = x.flatten(0, 1), (torch.arange(x.shape[1]) < n_tokens[:, None]).flatten()
    best, chosen = (values[:, :count] for values in logits.flatten(0, 1).sort(descending=True, stable=True))
    share, chosen = best.softmax(-1), chosen.masked_fill(~real[:, None], -1)
    y = torch.zeros_like(rows)
    for slot, number in enumerate(numbers):
        token, rank = (chosen == number).nonzero(as_tuple=True)
        if len(token):
            gate_up, down = weights(slot)
            gate, up = F.linear(rows[token], gate_up).chunk(2, -1)
            y.index_add_(0, token, share[token, rank, None] * F.linear(F.silu(gate) * up, down))
    return y.view_as(x)


BODIES = {
    "MoeExperts": Bodies(moe_experts, torch=fast),
    "Fp8MoeExperts": Bodies(fp8_moe_experts, torch=fast_fp8),
    "SparseMoe": Bodies(sparse_moe),
    "Fp8SparseMoe": Bodies(fp8_sparse_moe),
}
