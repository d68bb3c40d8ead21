"""Bodies of the causal convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies


def portable(attributes: Mapping[str, Any]) -> str:
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


def ort(attributes: Mapping[str, Any]) -> str:
    """The contrib convolution over channels first, and its activation apart: five times as fast over a prompt.

    Its loops over channels last and its own activation go one number at a time. The state is gathered by count, since
    the kernel always keeps the last rows.
    """
    return (
        """
CausalConv1d (x, weight, state, n_commit) => (y, state_out) {
  kernel = Cast <to = 1> (weight)
  x_t = Transpose <perm = [0, 2, 1]> (x)
  state_t = Transpose <perm = [0, 2, 1]> (state)
  conv_t, _last_rows = com.microsoft.CausalConvWithState <activation = "none"> (x_t, kernel, , state_t)
  conv = Transpose <perm = [0, 2, 1]> (conv_t)
  y = com.microsoft.QuickGelu <alpha: float = 1.0> (conv)
  padded = Concat <axis = 1> (state, x)"""
        + CONV_STATE
    )


# The W-1 raw inputs before token n = n_commit[b]: rows n .. n+W-2 of the padded input. Their offsets follow from the
# weight, which is constant: a runtime folds them, and what is left depends on n_commit alone, so that layers share it.
CONV_STATE = """
  kernel_width = Shape <start = 2, end = 3> (weight)
  kept_axis = Constant <value_ints: ints = [0]> ()
  kernel_width_0d = Squeeze (kernel_width, kept_axis)
  kept_from = Constant <value_int: int = 0> ()
  kept_step = Constant <value_int: int = 1> ()
  kept_length = Sub (kernel_width_0d, kept_step)
  kept = Range (kept_from, kept_length, kept_step)
  counts_64 = Cast <to = 7> (n_commit)
  kept_last = Constant <value_ints: ints = [-1]> ()
  counts_2d = Unsqueeze (counts_64, kept_last)
  kept_rows = Add (counts_2d, kept)
  kept_index = Unsqueeze (kept_rows, kept_last)
  state_out = GatherND <batch_dims = 1> (padded, kept_index)
}
"""


def fast(x: Tensor, weight: Tensor, state: Tensor, n_commit: Tensor) -> tuple[Tensor, Tensor]:
    """torch's grouped convolution."""
    width = weight.shape[-1]
    padded = torch.cat([state, x], dim=1)  # [B, W-1+T, C]
    y = F.conv1d(padded.mT, weight.to(x.dtype), groups=weight.shape[0]).mT
    kept = (n_commit[:, None] + torch.arange(width - 1)).long()  # [B, W-1]
    return F.silu(y).contiguous(), padded.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))


# `ort` reads its state twice, in no set order with the write: it is not in place.
BODIES = {"CausalConv1d": Bodies(portable, ort, torch=fast)}
