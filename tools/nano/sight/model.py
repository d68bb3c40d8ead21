"""The seeing nano: transformers' Qwen3_5ForConditionalGeneration over nano's text model, with nano's MTP head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from deltart.manifest import VisionEntry
from deltart.runtime.vision.medium import Medium
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.tower import grid_inputs
from tools.nano.model import HIDDEN, MtpHead, Nano, text_fields

VISION = {
    "model_type": "qwen3_5",
    "depth": 3,
    "hidden_size": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 256,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": HIDDEN,
    "deepstack_visual_indexes": [],
    "initializer_range": 0.02,
}
PLACES = ("vision_start", "vision_end", "image_pad", "video_pad")


def config_fields(vocab: dict[str, int], vocab_size: int, text_end: int) -> dict[str, Any]:
    """The family's config for a model that sees, at nano's dimensions.

    Args:
        vocab: ids of tokens by their text.
    """
    ids = {place: vocab[f"<|{place}|>"] for place in PLACES}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "text_config": {k: v for k, v in text_fields(vocab_size, text_end).items() if k != "architectures"},
        "vision_config": VISION,
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "tie_word_embeddings": False,
    }


class Seeing(Qwen3_5ForConditionalGeneration):
    """Qwen3_5ForConditionalGeneration that also owns, trains, saves and loads `mtp.*`."""

    def __init__(self, config: Qwen3_5Config) -> None:
        super().__init__(config)
        self.mtp = MtpHead(config.text_config)
        self.post_init()

    def rows(self, media: list[Medium], entry: VisionEntry) -> torch.Tensor:
        """[all tokens of the media, H]: what transformers' tower makes of them, all of their frames in one batch.

        Frames of several grids are padded to the longest, and padding is masked.
        """
        tower, frames, places, lengths = self.model.visual, [], [], []
        for medium in media:
            made = patches(medium.frames, entry)
            frames += list(made)
            grid = grid_inputs(medium.grid[1], medium.grid[2], entry)
            places += [grid] * len(made)
            lengths += [made.shape[1]] * len(made)
        longest = max(lengths)
        x = tower.patch_embed.proj.weight.flatten(1)
        h = F.linear(_padded(frames, longest), x, tower.patch_embed.proj.bias)  # [F, S, W]
        weight = _padded([grid["pos_weight"] for grid in places], longest)
        index = _padded([grid["pos_index"] for grid in places], longest)
        h = h + (tower.pos_embed(index) * weight[..., None]).sum(2)
        cos, sin = (
            _padded([grid[name] for grid in places], longest)[:, None].repeat(1, 1, 1, 2) for name in ("cos", "sin")
        )
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        mask = real[:, None, None].expand(-1, 1, longest, -1)
        for block in tower.blocks:
            h = h + _attention(block.attn, block.norm1(h), cos, sin, mask)
            h = h + block.mlp(block.norm2(h))
        return tower.merger(h[real])

    def embedded(self, tokens: torch.Tensor, media: list[Medium], entry: VisionEntry) -> torch.Tensor:
        """[B, T, H]: embeddings of tokens [B, T] with the rows of the media, in order, at their placeholders."""
        embedded = self.model.language_model.embed_tokens(tokens)
        if not media:
            return embedded
        pads = (tokens == entry.tokens["image_pad"]) | (tokens == entry.tokens["video_pad"])
        return embedded.masked_scatter(pads[..., None], self.rows(media, entry).to(embedded.dtype))

    def hidden(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[B, T, H] embeddings at positions [3, B, T] -> [B, T, H] trunk states after the final norm."""
        return self.model.language_model(
            inputs_embeds=embedded, position_ids=positions, use_cache=False
        ).last_hidden_state

    def draft_hidden(self, embedded: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """MTP states [B, T-1, H]; row i has seen tokens 0..i+1 and predicts token i+2 through lm_head."""
        rotary = self.model.language_model.rotary_emb(hidden, positions[:, :, :-1])
        return self.mtp(embedded[:, 1:], hidden[:, :-1], rotary)


def _attention(
    attention: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """transformers' vision attention for x [F, S, W], keys where mask [F, 1, S, S]."""
    frames, length, width = x.shape
    q, k, v = attention.qkv(x).view(frames, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = (_turned(part, cos, sin) for part in (q, k))
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
    return attention.proj(mixed.transpose(1, 2).reshape(frames, length, width))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.float().chunk(2, dim=-1)
    return x.float() * cos + torch.cat([-right, left], dim=-1) * sin


def _padded(arrays: list[np.ndarray], length: int) -> torch.Tensor:
    """[n, length, ...] of arrays [<= length, ...]."""
    whole = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[: len(array)] = array
    return torch.from_numpy(whole)


def new_model(config: Qwen3_5Config, nano: Nano, seed: int) -> Seeing:
    """The weights of `nano` in f32, and a tower of seeded ones."""
    torch.manual_seed(seed)
    model = Seeing(config).float()
    state = {name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: value
             for name, value in nano.state_dict().items()}  # fmt: skip
    left = model.load_state_dict(state, strict=False)
    if left.unexpected_keys or any(not name.startswith("model.visual.") for name in left.missing_keys):
        raise ValueError(f"nano's weights do not fit: {left}")
    tower = model.model.visual
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
        for block in tower.blocks:
            block.attn.proj.weight.mul_(0.3)
            block.mlp.linear_fc2.weight.mul_(0.3)
        tower.patch_embed.proj.weight.normal_(0, 0.5 * tower.patch_embed.proj.weight[0].numel() ** -0.5)
        tower.pos_embed.weight.normal_(0, 0.1)
    return model
