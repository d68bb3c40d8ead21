"""Qwen3.5/3.6: Gated DeltaNet and gated attention, three to one, with a multi-token-prediction head.

Module and parameter names are the checkpoint's. Shapes: B slots, T tokens of this call, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltart.export import ops
from deltart.export.formats import Linears
from deltart.export.layers import GatedRMSNorm, RMSNorm, Weight
from deltart.export.models.qwen3_6.mlp import MLP
from deltart.export.models.qwen3_6.moe import SparseMoE
from deltart.export.spec import ModelSpec


class GatedDeltaNet(nn.Module):
    """Linear attention by the gated delta rule (Yang et al., 2024). State: 3 raw conv inputs and S per head."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__()
        hidden, heads = spec.hidden_size, spec.linear_num_value_heads
        self.head_sizes = (spec.linear_num_key_heads, heads, spec.linear_key_head_dim, spec.linear_value_head_dim)
        self.in_proj_qkv = linear("in_proj_qkv", hidden, spec.conv_dim)
        self.in_proj_z = linear("in_proj_z", hidden, spec.value_dim)
        self.in_proj_a = linear("in_proj_a", hidden, heads)
        self.in_proj_b = linear("in_proj_b", hidden, heads)
        self.conv1d = Weight(spec.conv_dim, 1, spec.linear_conv_kernel_dim)
        self.A_log = nn.Parameter(torch.empty(heads), requires_grad=False)
        self.dt_bias = nn.Parameter(torch.empty(heads), requires_grad=False)
        self.norm = GatedRMSNorm(spec.linear_value_head_dim, spec.rms_norm_eps)
        self.out_proj = linear("out_proj", spec.value_dim, hidden)

    def forward(
        self, x: Tensor, n_tokens: Tensor, n_commit: Tensor, conv: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv, conv = ops.causal_conv1d(self.in_proj_qkv(x), self.conv1d.weight, conv, n_commit)
        a, b = self.in_proj_a(x), self.in_proj_b(x)
        o, S = ops.gated_delta_rule(qkv, a, b, self.A_log, self.dt_bias, S, n_tokens, n_commit, *self.head_sizes)
        return self.out_proj(self.norm(o, self.in_proj_z(x))), conv, S


class GatedAttention(nn.Module):
    """Grouped-query attention with normalised q and k, partial RoPE and a sigmoid output gate. State: K and V."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        self.rotary_dim = spec.rope.rotary_dim
        self.q_proj = linear("q_proj", spec.hidden_size, self.heads * 2 * self.head_dim)
        self.k_proj = linear("k_proj", spec.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = linear("v_proj", spec.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = linear("o_proj", self.heads * self.head_dim, spec.hidden_size)
        self.q_norm = RMSNorm(self.head_dim, spec.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, spec.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        n_tokens: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_len: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_gate = self.q_proj(x).unflatten(-1, (self.heads, 2 * self.head_dim))
        q, gate = q_gate[..., : self.head_dim], q_gate[..., self.head_dim :]  # [B, T, Hq, D] each
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))  # [B, T, Hkv, D]
        q = self.rotate(self.q_norm(q), (cos, sin), self.heads)
        k = self.rotate(self.k_norm(k), (cos, sin), self.kv_heads)
        o, k_cache, v_cache = ops.gated_attention(
            q, k, self.v_proj(x), gate.flatten(-2), k_cache, v_cache, past_len, n_tokens,
            self.heads, self.kv_heads, self.head_dim,
        )  # fmt: skip
        return self.o_proj(o), k_cache, v_cache

    def rotate(self, x: Tensor, rotary: tuple[Tensor, Tensor], heads: int) -> Tensor:
        """RoPE on the first rotary_dim of each head: [B, T, heads, D] -> [B, T, heads * D]."""
        cos, sin = rotary
        return torch.onnx.ops.rotary_embedding(
            x.flatten(-2), cos, sin, num_heads=heads, rotary_embedding_dim=self.rotary_dim
        )


class DecoderLayer(nn.Module):
    """h += mixer(norm(h)); h += mlp(norm(h)). The mixer is registered under the checkpoint's name for it.

    forward: h [B, T, H], n_tokens [B], then what the mixer takes besides, states last -> h, next states.
    """

    def __init__(self, spec: ModelSpec, name: str, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self._mixer = name
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.add_module(name, mixer)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = mlp

    def forward(self, h: Tensor, n_tokens: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        mixed, *states = self.get_submodule(self._mixer)(self.input_layernorm(h), n_tokens, *context)
        h = h + mixed
        x = self.post_attention_layernorm(h)
        return h + self.mlp(x, n_tokens), *states


class GatedDeltaNetLayer(DecoderLayer):
    """A layer of linear attention."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__(spec, "linear_attn", GatedDeltaNet(spec, linear.under("linear_attn")), mlp_of(spec, linear))


class GatedAttentionLayer(DecoderLayer):
    """A layer of full attention."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__(spec, "self_attn", GatedAttention(spec, linear.under("self_attn")), mlp_of(spec, linear))


def mlp_of(spec: ModelSpec, linear: Linears) -> nn.Module:
    """The feed-forward part of a layer. Its forward: x [B, T, H], n_tokens [B] -> [B, T, H]."""
    if spec.moe is not None:
        return SparseMoE(spec.hidden_size, spec.moe, linear.under("mlp"))
    return MLP(spec.hidden_size, spec.intermediate_size, linear.under("mlp"))


class Embedding(nn.Module):
    """Token ids [B, T] -> h [B, T, H] in the activation dtype."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embed_tokens = Weight(spec.vocab_size, spec.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.embed_tokens.weight).to(self.dtype)


class SeeingEmbedding(Embedding):
    """The same, with rows of `embeds` f32 [M, H] in the place of the tokens whose `index` i32 [B, T] is not -1."""

    def forward(self, input_ids: Tensor, embeds: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        seen = F.embedding(index.clamp(min=0).to(torch.int64), embeds).to(self.dtype)
        return torch.where(index[..., None] >= 0, seen, super().forward(input_ids))


class Head(nn.Module):
    """The final norm, and logits f32 [B, L, V] at the token positions `logit_index` [B, L] of this call."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__()
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.lm_head = linear("lm_head", spec.hidden_size, spec.vocab_size)

    def forward(self, h: Tensor, logit_index: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(h)
        rows = logit_index[..., None].expand(-1, -1, hidden.shape[-1])  # [B, L, H]
        return self.lm_head(hidden.gather(1, rows)).to(torch.float32), hidden


class MtpFusion(nn.Module):
    """Joins the next token's embedding with the hidden state before it (embedding first): [B, T, H]."""

    def __init__(self, spec: ModelSpec, linear: Linears) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.pre_fc_norm_hidden = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.fc = linear("fc", 2 * spec.hidden_size, spec.hidden_size)

    def forward(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        return self.fc(torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], dim=-1))
