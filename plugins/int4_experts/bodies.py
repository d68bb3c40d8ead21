"""Body of the experts in int4: the Scan over the slots of `moe_experts`, whose weights are widened a slot at a time.

The low halves of a row's bytes are its even columns and the high ones its odd columns. They stay apart, even columns
first, since putting them together takes a copy per value; so x is put in that order, once, and so are the rows of gate
and up, whose product down reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.plugins.bodies import Bodies, integers
from deltart.plugins.int4_linear.reference import ZERO
from deltart.plugins.moe_experts.bodies import scan


def int4_moe_experts(attributes: Mapping[str, Any]) -> str:
    """Experts in a region of the vendor's file, each down, gate and up with their scales."""
    hidden, width, group = (attributes[name] for name in ("hidden_size", "intermediate_size", "group_size"))
    weights = f"""
        one_and_two = {integers(1, 2)}
        fifteen = Constant <value = uint8 {{15}}> ()
        four = Constant <value = uint8 {{4}}> ()
        scales = Cast <to = 1> (experts_scale_stored)
        down_bytes, gate_up_bytes = Split <axis = 0> (experts_stored, one_and_two)
        down_scales, gate_up_scales = Split <axis = 0> (scales, one_and_two)
        down_rows_shape = {integers(hidden, width // 2)}
        down_rows = Reshape (down_bytes, down_rows_shape)
        down_scale_shape = {integers(hidden, width // group)}
        down_scale_rows = Reshape (down_scales, down_scale_shape)
{_widened("down", hidden, width, group)}
        pair_shape = {integers(2, width // 2, 2, hidden // 2)}
        pairs_of_rows = Reshape (gate_up_bytes, pair_shape)
        even_then_odd = Transpose <perm = [0, 2, 1, 3]> (pairs_of_rows)
        gate_up_rows_shape = {integers(2 * width, hidden // 2)}
        gate_up_rows = Reshape (even_then_odd, gate_up_rows_shape)
        scale_pair_shape = {integers(2, width // 2, 2, hidden // group)}
        pairs_of_scales = Reshape (gate_up_scales, scale_pair_shape)
        scales_in_order = Transpose <perm = [0, 2, 1, 3]> (pairs_of_scales)
        gate_up_scale_shape = {integers(2 * width, hidden // group)}
        gate_up_scale_rows = Reshape (scales_in_order, gate_up_scale_shape)
{_widened("gate_up", 2 * width, hidden, group)}"""
    return f"""
Int4MoeExperts <num_experts_per_tok, hidden_size, intermediate_size, group_size>
  (x_as_it_is, logits, n_tokens, experts, experts_scale, slot_expert) => (y) {{
  column_pairs = {integers(0, 0, hidden // 2, 2)}
  x_pairs = Reshape (x_as_it_is, column_pairs)
  x_even_then_odd = Transpose <perm = [0, 1, 3, 2]> (x_pairs)
  columns = {integers(0, 0, hidden)}
  x = Reshape (x_even_then_odd, columns)
{scan(attributes, ("experts", "experts_scale"), weights, "y")}
}}
"""


def _widened(part: str, rows: int, columns: int, group: int) -> str:
    """{part}_weight [rows, columns], even columns first, of {part}_rows [rows, columns / 2] and their scales."""
    return f"""
        {part}_low = BitwiseAnd ({part}_rows, fifteen)
        {part}_high = BitShift <direction = "RIGHT"> ({part}_rows, four)
        {part}_values = Concat <axis = 1> ({part}_low, {part}_high)
        {part}_halves_shape = {integers(2 * rows * columns // group, group // 2)}
        {part}_halves = Reshape ({part}_values, {part}_halves_shape)
        {part}_both_scales = Concat <axis = 1> ({part}_scale_rows, {part}_scale_rows)
        {part}_flat = {integers(-1)}
        {part}_scale = Reshape ({part}_both_scales, {part}_flat)
        {part}_count = Shape ({part}_scale)
        {part}_zero = ConstantOfShape <value = uint8[1] {{{ZERO}}}> ({part}_count)
        {part}_wide = DequantizeLinear <axis = 0> ({part}_halves, {part}_scale, {part}_zero)
        {part}_shape = {integers(rows, columns)}
        {part}_weight = Reshape ({part}_wide, {part}_shape)"""


BODIES = {"Int4MoeExperts": Bodies(int4_moe_experts)}
