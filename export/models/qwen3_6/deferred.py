"""Which tensors of a checkpoint no graph reads, and why."""

from __future__ import annotations

from collections.abc import Iterator

from deltart.export.spec import FULL, ModelSpec


def deferred(spec: ModelSpec, mtp: bool) -> Iterator[tuple[str, str]]:
    """(start of the tensors' names, reason) of what is left out, the MTP head too unless `mtp`."""
    if spec.vision is not None:
        yield "model.visual.", "vision: no graph yet"
    if not mtp:
        yield "mtp.", "MTP head left out on request"
    if spec.tie_word_embeddings:
        yield "lm_head.", "tied to the embedding"
    full = [f"{spec.text_prefix}layers.{n}" for n, kind in enumerate(spec.layer_types) if kind == FULL]
    for layer in [*full, "mtp.layers.0"]:
        for scale in ("k_scale", "v_scale"):
            yield f"{layer}.self_attn.{scale}", "scale of an FP8 KV cache: the cache is not FP8 here"
