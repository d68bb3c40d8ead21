"""Float64 reference of routed experts in int4."""

from __future__ import annotations

import numpy as np

from deltart.plugins.int4_linear.reference import dequantize
from deltart.plugins.moe_experts.reference import moe_experts


def int4_moe_experts(
    x: np.ndarray, logits: np.ndarray, n_tokens: np.ndarray, experts: np.ndarray, experts_scale: np.ndarray,
    slot_expert: np.ndarray, num_experts_per_tok: int, hidden_size: int, intermediate_size: int, group_size: int,
) -> tuple[np.ndarray]:  # fmt: skip
    """As `moe_experts`, of the experts that lie in the region: slot s holds expert slot_expert[s].

    experts [S, 3, H*I/2] (bytes): down [H, I], gate [I, H] and up [I, H] of each slot, two values a byte; experts_scale
    [S, 3, H*I/group_size]: their scales. An expert in no slot adds nothing.
    """
    hidden, width = hidden_size, intermediate_size
    gate_up, down = np.zeros((logits.shape[-1], 2 * width, hidden)), np.zeros((logits.shape[-1], hidden, width))
    for number, groups, scale in zip(slot_expert.tolist(), experts, experts_scale, strict=True):
        matrices = dequantize(groups.reshape(-1, 1, group_size // 2), scale.reshape(-1, 1)).reshape(3, -1)
        down[number] = matrices[0].reshape(hidden, width)
        gate_up[number] = matrices[1:].reshape(2 * width, hidden)
    return moe_experts(x, logits, n_tokens, gate_up, down, num_experts_per_tok, hidden, width)
