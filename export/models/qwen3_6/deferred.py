"""Which tensors of a checkpoint no graph reads, and why."""

from __future__ import annotations

from collections.abc import Iterator

from deltart.export.spec import FULL, ModelSpec
from deltart.export.structure import VISION_PREFIXES


def deferred(spec: ModelSpec, mtp: bool, vision: bool) -> Iterator[tuple[str, str]]:
    """(start of the tensors' names, reason) of what is left out, the MTP head and the tower too unless asked for."""
    if not (spec.vision and vision):
        reason = "vision: left out, text only" if spec.vision else "vision: config.json has no vision tower"
        for prefix in VISION_PREFIXES:
            yield prefix, reason
    if not mtp:
        yield spec.mtp_prefix, "MTP head left out on request"
    if spec.tie_word_embeddings:
        yield spec.head_prefix, "tied to the embedding: the same bytes"
    full = [f"{spec.text_prefix}layers.{n}" for n, kind in enumerate(spec.layer_types) if kind == FULL]
    for layer in [*full, f"{spec.mtp_prefix}layers.0"]:
        for scale in ("k_scale", "v_scale"):
            yield f"{layer}.self_attn.{scale}", "scale of an FP8 KV cache: the cache is not FP8 here"
