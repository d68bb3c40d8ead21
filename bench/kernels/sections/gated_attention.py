"""The section of the gated attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.kernels import peers_linear as peers
from bench.kernels.device import Buffers
from bench.kernels.run import Run, measure, once
from bench.kernels.table import Row
from deltart.plugins import gated_attention
from deltart.plugins.cases import Arrays
from deltart.plugins.gated_attention import inputs, launch
from deltart.plugins.gated_attention.reference import gated_attention as reference
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SOURCE = Path(gated_attention.__file__).parent / "kernel.cu"


def attention_bytes(shape: inputs.Shape, length: int) -> int:
    """Keys and values in use, read once; q, gate and o."""
    keys = 2 * shape.slots * shape.kv_heads * length * shape.head_dim * (1 if shape.cache_dtype == "e4m3" else 2)
    return keys + 6 * shape.slots * shape.tokens * shape.heads * shape.head_dim


def expected_attention(shape: inputs.Shape, given: Arrays) -> np.ndarray:
    """The reference on contiguous bf16 caches."""
    names = ("q", "k", "v", "gate", "k_cache", "v_cache")
    wide = [given[name].astype(np.float64) for name in names]
    lengths = (given["past_len"], given["n_tokens"])
    return reference(*wide, *lengths, shape.heads, shape.kv_heads, shape.head_dim)[0]


def attention(run: Run) -> Iterator[Row]:
    """Decode and speculation by length, prefill; the E4M3 cache is timed, its errors are the tests'."""
    heads = {"heads": 6, "kv_heads": 1} if run.small else {}
    cases = [(1, 1, 100), (2, 4, 70)] if run.small else [(1, 1, 1024), (1, 1, 32768), (1, 4, 32768), (16, 1, 4096)]
    cases += [(1, 70, 30)] if run.small else [(1, 2048, 0), (1, 2048, 6144)]
    for slots, tokens, past in cases:
        for cache in ("bf16", "e4m3"):
            shape = inputs.Shape(slots, tokens, **heads, capacity=past + tokens, cache_dtype=cache)
            given = inputs.make(shape, run.seed, np.full(slots, past))
            by = launch.plan(shape)
            work = {"workspace": np.zeros(max(16, by.workspace_bytes()), np.uint8)}
            arrays, row = (
                given | inputs.outputs(shape) | work,
                Row("attention", f"B={slots} T={tokens} past={past} {cache}"),
            )

            def plan(b: Buffers, by: launch.Plan = by) -> list[Launch]:
                return launch.attention(by, b.at)

            found = once(run, SOURCE, arrays, plan).read("o")
            row.passed = bool(np.isfinite(found.astype(np.float32)).all())
            if cache == "bf16" and tokens < 100:
                row.error = relative_rms(found, expected_attention(shape, given))
                row.passed = row.error <= TOLERANCE["bf16"]
            rivals = {"torch sdpa": peers.sdpa(shape)} if run.rivals and cache == "bf16" else {}
            flops = 4 * slots * tokens * (past + (tokens + 1) // 2) * shape.heads * shape.head_dim
            moved = attention_bytes(shape, past + tokens)
            yield measure(run, row, SOURCE, arrays, plan, moved, flops, rivals)
