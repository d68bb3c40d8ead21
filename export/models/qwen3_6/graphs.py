"""Qwen3.5/3.6 as graphs: which blocks there are, what they read, carry as state and write, and their tensors' names."""

from __future__ import annotations

import torch

from deltart.export.graph import I64, Block, ModelGraph, State, Value, activation, values
from deltart.export.layers import RotaryTable
from deltart.export.models.qwen3_6.text import (
    Embedding,
    GatedAttentionLayer,
    GatedDeltaNetLayer,
    Head,
    MtpFusion,
    SeeingEmbedding,
)
from deltart.export.models.qwen3_6.vision import PatchMerger, VisionBlock, VisionEmbedding
from deltart.export.spec import FULL, LINEAR, ModelSpec, VisionSpec
from deltart.manifest import MEDIA_INPUTS
from deltart.plugins.spec import ACT, F32, I32

PLACED = ("patches", "pos_index", "pos_weight", "cos", "sin")


def text_graph(spec: ModelSpec, dtype: torch.dtype, vision: bool = False) -> ModelGraph:
    """The decoder: input_ids [B, T] in, logits at `logit_index` and the normed hidden states out.

    With `vision`, rows of the tower may stand in the place of tokens.
    """
    prefix = spec.text_prefix
    layers = [_layer(spec, f"layers.{n}", prefix, kind) for n, kind in enumerate(spec.layer_types)]
    blocks = (
        _embed(spec, dtype, vision, "h"),
        _rotary(spec, dtype),
        *layers,
        _head(spec, prefix),
    )
    inputs = ("input_ids", "position_ids", "past_len", "n_tokens", "n_commit", "logit_index")
    return ModelGraph("model", _values(spec), _with_media(inputs, vision), ("logits", "hidden"), blocks)


def mtp_graph(spec: ModelSpec, dtype: torch.dtype, vision: bool = False) -> ModelGraph:
    """The MTP head: drafts token i+2 from token i+1 (`input_ids`) and the hidden state at i (`previous_hidden`)."""
    blocks = (
        _embed(spec, dtype, vision, "embedding"),
        Block(
            "fusion",
            lambda linear: MtpFusion(spec, linear),
            {"": spec.mtp_prefix},
            ("embedding", "previous_hidden"),
            ("h",),
        ),
        _rotary(spec, dtype),
        _layer(spec, "layers.0", spec.mtp_prefix, FULL),
        _head(spec, spec.mtp_prefix),
    )
    inputs = ("input_ids", "previous_hidden", "position_ids", "past_len", "n_tokens", "logit_index")
    return ModelGraph("mtp", _values(spec), _with_media(inputs, vision), ("logits", "hidden"), blocks)


def vision_graph(spec: ModelSpec, vision: VisionSpec, dtype: torch.dtype) -> ModelGraph:
    """The tower: patches of F frames of one grid and where they lie in, rows for the text model out."""
    prefix = spec.vision_prefix
    embed = Block(
        "embed", lambda _: VisionEmbedding(vision, dtype), {"": prefix}, PLACED, ("h", "frame_cos", "frame_sin")
    )
    layers = [
        Block(
            f"blocks.{n}", lambda _: VisionBlock(vision), {"": f"{prefix}blocks.{n}."},
            ("h", "frame_cos", "frame_sin"), ("h",),
        )
        for n in range(vision.depth)
    ]  # fmt: skip
    merger = Block("merger", lambda _: PatchMerger(vision), {"": f"{prefix}merger."}, ("h",), ("embeds",))
    return ModelGraph("vision", _vision_values(vision), PLACED, ("embeds",), (embed, *layers, merger))


def _vision_values(vision: VisionSpec) -> dict[str, Value]:
    pairs = vision.hidden_size // vision.num_heads // 2
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return values(
        Value("patches", F32, ("F", "S", patch)),
        Value("pos_index", I64, ("S", 4)),
        Value("pos_weight", F32, ("S", 4)),
        Value("cos", F32, ("S", pairs)),
        Value("sin", F32, ("S", pairs)),
        activation("h", "F", "S", vision.hidden_size),
        Value("frame_cos", F32, ("F", "S", pairs)),
        Value("frame_sin", F32, ("F", "S", pairs)),
        Value("embeds", F32, ("F", "R", vision.out_hidden_size)),
    )


def _with_media(inputs: tuple[str, ...], vision: bool) -> tuple[str, ...]:
    return (*inputs, *MEDIA_INPUTS) if vision else inputs


def _embed(spec: ModelSpec, dtype: torch.dtype, vision: bool, result: str) -> Block:
    prefixes = {"": spec.text_prefix}
    if vision:
        return Block("embed", lambda _: SeeingEmbedding(spec, dtype), prefixes, ("input_ids", *MEDIA_INPUTS), (result,))
    return Block("embed", lambda _: Embedding(spec, dtype), prefixes, ("input_ids",), (result,))


def _layer(spec: ModelSpec, name: str, prefix: str, kind: str) -> Block:
    weights = {"": f"{prefix}{name}."}
    if kind == LINEAR:
        heads, key_dim, value_dim = spec.linear_num_value_heads, spec.linear_key_head_dim, spec.linear_value_head_dim
        conv = State(f"{name}.conv", ACT, ("B", spec.linear_conv_kernel_dim - 1, spec.conv_dim))
        S = State(f"{name}.S", F32, ("B", heads, key_dim, value_dim))
        counts = ("h", "n_tokens", "n_commit")
        return Block(name, lambda linear: GatedDeltaNetLayer(spec, linear), weights, counts, ("h",), (conv, S))
    cache = ("B", spec.num_key_value_heads, "capacity", spec.head_dim)
    kv = (State(f"{name}.k", ACT, cache), State(f"{name}.v", ACT, cache))
    inputs = ("h", "n_tokens", "cos", "sin", "past_len")
    return Block(name, lambda linear: GatedAttentionLayer(spec, linear), weights, inputs, ("h",), kv)


def _rotary(spec: ModelSpec, dtype: torch.dtype) -> Block:
    return Block("rotary", lambda _: RotaryTable(spec.rope, dtype), {}, ("position_ids",), ("cos", "sin"))


def _head(spec: ModelSpec, prefix: str) -> Block:
    head = f"{spec.text_prefix}embed_tokens." if spec.tie_word_embeddings else spec.head_prefix
    prefixes = {"norm.": f"{prefix}norm.", "lm_head.": head}
    return Block("head", lambda linear: Head(spec, linear), prefixes, ("h", "logit_index"), ("logits", "hidden"))


def _values(spec: ModelSpec) -> dict[str, Value]:
    hidden, pairs = spec.hidden_size, spec.rope.rotary_dim // 2
    return values(
        Value("input_ids", I64, ("B", "T")),
        Value("position_ids", I64, (3, "B", "T")),
        Value("past_len", I32, ("B",)),
        Value("n_tokens", I32, ("B",)),
        Value("n_commit", I32, ("B",)),
        Value("logit_index", I64, ("B", "L")),
        activation("h", "B", "T", hidden),
        activation("embedding", "B", "T", hidden),
        activation("previous_hidden", "B", "T", hidden),
        activation("hidden", "B", "T", hidden),
        activation("cos", "B", "T", pairs),
        activation("sin", "B", "T", pairs),
        Value("vision_embeds", F32, ("M", hidden)),
        Value("vision_index", I32, ("B", "T")),
        Value("logits", F32, ("B", "L", spec.vocab_size)),
    )
