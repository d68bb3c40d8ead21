"""Calls of the gated attention that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import PAIRS, SLOTS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.dtypes import cast
from deltart.plugins.gated_attention import inputs, rope
from deltart.plugins.gated_attention.launch import plan
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.qk_norm_rope import inputs as rope_inputs
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, heads = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 48, 49, 200), ((24, 4), (16, 2), (6, 2), (1, 1), (16, 1), (9, 9))
    refused = ((5, 2), (34, 2))
    for b, t, (h, kv), d, types in product(SLOTS, tokens, heads + refused, (64, 96, 128, 256), PAIRS[1:3]):
        sizes = {"B": b, "T": t, "Nq": h * d, "Nkv": kv * d, "capacity": 64 * b + 4000}
        attributes = {"num_heads": h, "num_kv_heads": kv, "head_dim": d}
        yield op_call(GATED_ATTENTION, sizes, attributes, types)
        if (t, d) == (200, 256):
            yield replace(op_call(GATED_ATTENTION, sizes, attributes, types), capability=89)


def timed_joined(small: bool) -> Iterator[KernelCase]:
    """Attention from the projections on, as the 27B model decodes and speculates, or `small`."""
    heads, kv_heads = (6, 1) if small else (24, 4)
    cases = ((2, 1, 100), (1, 4, 70)) if small else ((1, 1, 1024), (1, 1, 32768), (1, 4, 32768), (16, 1, 4096))
    for slots, tokens, past in cases:
        yield _joined(inputs.Shape(slots, tokens, heads, kv_heads, capacity=past + tokens), past)


def _joined(shape: inputs.Shape, past: int) -> KernelCase:
    turn = rope.Turn()
    sizes = rope_inputs.Shape(shape.slots, shape.tokens, shape.heads, shape.kv_heads, shape.head_dim, turn.rotary_dim)
    by = plan(shape)

    def given(seed: int) -> Arrays:
        arrays = inputs.make(shape, seed, np.full(shape.slots, past)) | rope_inputs.make(sizes, seed)
        scratch = {"arrived": np.zeros(shape.slots * shape.kv_heads, np.int32)}
        scratch |= {"workspace": np.zeros(max(16, by.workspace_bytes()), np.uint8)}
        return {name: array for name, array in arrays.items() if name not in ("q", "gate")} | scratch

    def expected(arrays: Arrays) -> Arrays:
        """With queries and keys rounded once they are turned, as they are in the cache."""
        heads = (shape.heads, shape.kv_heads, shape.head_dim)
        wide = (arrays[tensor.name].astype(np.float64) for tensor in QK_NORM_ROPE.inputs)
        turned = (cast(x, "bf16").astype(np.float64) for x in QK_NORM_ROPE.reference(*wide, *heads, turn.epsilon))
        q, k, gate = turned
        v, *caches = (np.nan_to_num(arrays[name].astype(np.float64)) for name in ("v", "k_cache", "v_cache"))
        results = GATED_ATTENTION.reference(q, k, v, gate, *caches, arrays["past_len"], arrays["n_tokens"], *heads)
        return dict(zip(("o", "k_cache", "v_cache"), results, strict=True))

    return KernelCase(
        name=f"rope, attention B={shape.slots} T={shape.tokens} past={past}",
        source=Path(__file__).parent / "rope.cu",
        given=given,
        outputs=lambda: inputs.outputs(shape),
        launches=lambda at: rope.attention(by, turn, at),
        expected=expected,
        tolerance=dict.fromkeys(("o", "k_cache", "v_cache"), TOLERANCE["bf16"]),
        read=lambda arrays: sum(array.nbytes for name, array in arrays.items() if name != "workspace"),
    )


CALLS = {"GatedAttention": calls}
