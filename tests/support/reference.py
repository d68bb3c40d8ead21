"""Transformers' Qwen3.5, and the MTP formula around its attention layer: what the exported graphs must reproduce."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5TextRotaryEmbedding
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeDecoderLayer

from support.cases import Exported, stored_weights


def transformers_model(case: Exported) -> PreTrainedModel:
    """transformers' model in float32, eager attention, loaded with the case's weights."""
    config = _config(case, {})
    model = (Qwen3_5MoeForCausalLM if _is_sparse(case) else Qwen3_5ForCausalLM)(config).eval().float()
    weights = {n: w for n, w in stored_weights(case.checkpoint).items() if not n.startswith("mtp.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"} and (not missing or config.tie_word_embeddings)
    model.tie_weights()
    return model


def _is_sparse(case: Exported) -> bool:
    return "num_experts" in case.config


def _config(case: Exported, changes: dict[str, object]) -> Qwen3_5TextConfig | Qwen3_5MoeTextConfig:
    fields = {k: v for k, v in case.config.items() if k != "architectures"} | changes
    config = (Qwen3_5MoeTextConfig if _is_sparse(case) else Qwen3_5TextConfig)(**fields)
    config._attn_implementation = "eager"
    return config


class MtpReference(nn.Module):
    """fc(cat[norm(embed(t_{i+1})), norm(h_i)]) -> attention layer -> norm -> lm_head, on transformers' layer."""

    def __init__(self, case: Exported) -> None:
        super().__init__()
        self.weights = stored_weights(case.checkpoint)
        config = _config(case, {"layer_types": ["full_attention"], "num_hidden_layers": 1})
        layer = Qwen3_5MoeDecoderLayer if _is_sparse(case) else Qwen3_5DecoderLayer
        self.layer = layer(config, 0).float().eval()
        prefix = "mtp.layers.0."
        self.layer.load_state_dict({k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)})
        self.rotary = Qwen3_5TextRotaryEmbedding(config)
        self.tied = config.tie_word_embeddings

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weights[f"mtp.{name}.weight"])

    @torch.no_grad()
    def forward(self, next_ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        embedding = F.embedding(next_ids, self.weights["model.embed_tokens.weight"])
        joined = torch.cat([self.norm(embedding, "pre_fc_norm_embedding"), self.norm(hidden, "pre_fc_norm_hidden")], -1)
        x = F.linear(joined, self.weights["mtp.fc.weight"])
        length = x.shape[1]
        rotary = self.rotary(x, torch.arange(length).expand(3, len(x), -1))
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        x = self.layer(x, position_embeddings=rotary, attention_mask=mask)
        x = x[0] if isinstance(x, tuple) else x
        head = "model.embed_tokens.weight" if self.tied else "lm_head.weight"
        return F.linear(self.norm(x, "norm"), self.weights[head])
