"""The nano architecture: transformers' Qwen3_5ForCausalLM plus the family's MTP head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

HIDDEN, FFN, LAYERS = 256, 512, 4
ROPE_THETA = 10_000_000


def text_fields(vocab_size: int, text_end: int) -> dict[str, Any]:
    """The family's text config at nano's dimensions, but for the fields left at transformers' defaults."""
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": ROPE_THETA,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
        },
        "full_attention_interval": 4,
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "partial_rotary_factor": 0.25,
        "bos_token_id": text_end,
        "eos_token_id": text_end,
        "pad_token_id": text_end,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


class MtpHead(nn.Module):
    """Multi-token prediction: from the trunk's state at i and token i+1, the state that predicts token i+2."""

    def __init__(self, config: Qwen3_5TextConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.pre_fc_norm_embedding = Qwen3_5RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = Qwen3_5RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm = Qwen3_5RMSNorm(config.hidden_size, config.rms_norm_eps)
        attention = list(config.layer_types or ()).index("full_attention")
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(config, attention)])

    def forward(
        self, embedded: torch.Tensor, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """embedded [B, T, H] of tokens 1..T, hidden [B, T, H] after the final norm at 0..T-1 -> [B, T, H]."""
        joined = torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], dim=-1)
        return self.norm(self.layers[0](self.fc(joined), position_embeddings=rotary))


class Nano(Qwen3_5ForCausalLM):
    """Qwen3_5ForCausalLM that also owns, trains, saves and loads `mtp.*`."""

    def __init__(self, config: Qwen3_5TextConfig) -> None:
        super().__init__(config)
        self.mtp = MtpHead(config)
        self.post_init()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] tokens -> [B, T, H] trunk states after the final norm."""
        return self.model(input_ids=tokens, use_cache=False).last_hidden_state

    def draft_hidden(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """MTP states [B, T-1, H]; row i has seen tokens 0..i+1 and predicts token i+2 through lm_head."""
        positions = torch.arange(tokens.shape[1] - 1).expand(3, tokens.shape[0], -1)
        rotary = self.model.rotary_emb(hidden, positions)
        return self.mtp(self.model.embed_tokens(tokens[:, 1:]), hidden[:, :-1], rotary)


def new_model(config: Qwen3_5TextConfig, seed: int) -> Nano:
    """Seeded initial weights in f32, with decay rates that start slow enough to remember a whole prompt."""
    torch.manual_seed(seed)
    model = Nano(config).float()
    with torch.no_grad():
        for layer in model.model.layers:
            if layer.block_type == "linear_attention":
                heads = layer.linear_attn.num_v_heads
                layer.linear_attn.A_log.copy_(torch.linspace(0.0, 1.0, heads))
                step = torch.logspace(-2.5, -1, heads)
                layer.linear_attn.dt_bias.copy_(step.expm1().log())
    return model
