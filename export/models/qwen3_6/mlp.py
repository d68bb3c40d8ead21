"""The dense feed-forward part of a layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from deltart.export.formats import Linears


class MLP(nn.Module):
    """SwiGLU of a given width; tokens beyond n_tokens cost what others do."""

    def __init__(self, hidden: int, width: int, linear: Linears) -> None:
        super().__init__()
        self.gate_proj = linear("gate_proj", hidden, width)
        self.up_proj = linear("up_proj", hidden, width)
        self.down_proj = linear("down_proj", width, hidden)

    def forward(self, x: Tensor, n_tokens: Tensor | None = None) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y
