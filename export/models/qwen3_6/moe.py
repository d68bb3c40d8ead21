"""The sparse feed-forward part of a layer: routed experts, and one that every token takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltart.export.formats import Linears
from deltart.export.formats.bf16 import Linear
from deltart.export.layers import Weight
from deltart.export.models.qwen3_6.mlp import MLP
from deltart.export.spec import MoeSpec


class Router(Weight):
    """x [B, T, H] -> logits [B, T, E] in f32: rounded to bfloat16, one token in thirteen ties at the last place."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(torch.float32), self.weight.to(torch.float32))


class SparseMoE(nn.Module):
    """x [B, T, H], n_tokens [B] -> k experts by the router, and the shared one through its own sigmoid gate."""

    def __init__(self, hidden: int, moe: MoeSpec, linear: Linears) -> None:
        super().__init__()
        self.gate = Router(moe.num_experts, hidden)
        self.experts = linear.experts("experts", moe, hidden)
        self.shared_expert = MLP(hidden, moe.shared_expert_intermediate_size, linear.under("shared_expert"))
        self.shared_expert_gate = Linear(hidden, 1)

    def forward(self, x: Tensor, n_tokens: Tensor) -> Tensor:
        routed: Tensor = self.experts(x, self.gate(x), n_tokens)
        return routed + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)
