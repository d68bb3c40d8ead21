"""The vision tower of Qwen3.5/3.6: a ViT over the patches of frames, whose blocks of patches merge into text rows.

Module and parameter names are the checkpoint's. Shapes: F frames (temporal patches) of one grid, S patches of each in
the order of their merged blocks, W hidden. Frames don't see each other, so they are the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltart.export.layers import Weight
from deltart.export.spec import VisionSpec

EPSILON = 1e-6  # of the tower's layer norms; config.json does not say


class Affine(nn.Module):
    """y = x W^T + b, in the dtype of x. The weight may be stored with more axes, which are those of a row."""

    def __init__(self, out_features: int, *in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, *in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1).to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    """(x - mean) / std * w + b over the last axis, in f32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(torch.float32), self.bias.to(torch.float32)
        return F.layer_norm(x.to(torch.float32), weight.shape, weight, bias, EPSILON).to(x.dtype)


class PatchEmbed(nn.Module):
    """The convolution whose stride is its kernel: a linear over the values of a patch."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        size = vision.patch_size
        self.proj = Affine(vision.hidden_size, vision.in_channels, vision.temporal_patch_size, size, size)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class VisionEmbedding(nn.Module):
    """Patches with their places: h = proj(patch) + a bilinear mix of four rows of the position table.

    forward: patches f32 [F, S, C * t * p * p], pos_index i64 and pos_weight f32 [S, 4], cos and sin f32 [S, D / 2]
    -> h [F, S, W], and cos and sin for every frame, [F, S, D / 2].
    """

    def __init__(self, vision: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.patch_embed = PatchEmbed(vision)
        self.pos_embed = Weight(vision.num_position_embeddings, vision.hidden_size)

    def forward(
        self, patches: Tensor, pos_index: Tensor, pos_weight: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        taps = F.embedding(pos_index, self.pos_embed.weight).to(torch.float32)  # [S, 4, W]
        places = (taps * pos_weight[..., None]).sum(1).to(self.dtype)
        h = self.patch_embed(patches.to(self.dtype)) + places
        frames = patches.shape[0]
        return h, cos.expand(frames, -1, -1), sin.expand(frames, -1, -1)


class VisionAttention(nn.Module):
    """Attention over the patches of a frame, all of them, with 2-D RoPE on whole heads. qkv: [q | k | v] rows."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.heads, width = vision.num_heads, vision.hidden_size
        self.qkv = Affine(3 * width, width)
        self.proj = Affine(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        *parts, v = self.qkv(x).chunk(3, dim=-1)
        turned = [
            torch.onnx.ops.rotary_embedding(part.to(torch.float32), cos, sin, num_heads=self.heads) for part in parts
        ]
        q, k = (part.to(x.dtype) for part in turned)
        o, *_ = torch.onnx.ops.attention(q, k, v, q_num_heads=self.heads, kv_num_heads=self.heads)
        return self.proj(o)


class VisionMLP(nn.Module):
    """linear, GELU (tanh form), linear."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.linear_fc1 = Affine(vision.intermediate_size, vision.hidden_size)
        self.linear_fc2 = Affine(vision.hidden_size, vision.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    """h += attn(norm1(h)); h += mlp(norm2(h))."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.norm1 = LayerNorm(vision.hidden_size)
        self.norm2 = LayerNorm(vision.hidden_size)
        self.attn = VisionAttention(vision)
        self.mlp = VisionMLP(vision)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = h + self.attn(self.norm1(h), cos, sin)
        return h + self.mlp(self.norm2(h))


class PatchMerger(nn.Module):
    """The patches of a block side by side, through linear, GELU (erf form), linear: f32 [F, S / merge^2, out]."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.patches = vision.spatial_merge_size**2
        width = vision.hidden_size * self.patches
        self.norm = LayerNorm(vision.hidden_size)
        self.linear_fc1 = Affine(width, width)
        self.linear_fc2 = Affine(vision.out_hidden_size, width)

    def forward(self, h: Tensor) -> Tensor:
        blocks = self.norm(h).unflatten(1, (-1, self.patches)).flatten(2)
        return self.linear_fc2(F.gelu(self.linear_fc1(blocks))).to(torch.float32)
