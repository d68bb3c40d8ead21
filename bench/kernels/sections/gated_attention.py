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
from deltart.plugins.gated_attention import inputs, launch, prefill
from deltart.plugins.gated_attention.reference import gated_attention as reference
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(gated_attention.__file__).parent
SOURCE, WGMMA_SOURCE = FOLDER / "kernel.cu", FOLDER / "prefill.cu"
SAMPLED = 24  # tokens of a prompt that are computed in float64, besides those at borders


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


def prompt_errors(shape: inputs.Shape, given: Arrays, read: Arrays, seed: int) -> tuple[float, float]:
    """Relative RMS of o over some tokens of a prompt on bf16 caches, in float64, and of the keys and values that were
    appended. Infinite where o of a token beyond n_tokens is not zero, or anything of o not finite."""
    rng, errors, cached = np.random.default_rng(seed), [0.0], [0.0]
    o = read["o"].astype(np.float64).reshape(shape.slots, shape.tokens, shape.heads, shape.head_dim)
    for slot, (past, count) in enumerate(zip(given["past_len"].tolist(), given["n_tokens"].tolist(), strict=True)):
        if o[slot, count:].any() or not np.isfinite(o[slot]).all():
            return np.inf, np.inf
        if not count:
            continue
        keys, values = (
            np.concatenate([given[f"{n}_cache"][slot, :, :past], _heads(given[n][slot, :count], shape)], axis=1)
            for n in ("k", "v")
        )
        for name, right in (("k", keys), ("v", values)):
            found = read[f"{name}_cache"][slot, :, : past + count]
            cached.append(relative_rms(found.astype(np.float64), right.astype(np.float64)))
        keys, values = keys.astype(np.float64), values.astype(np.float64)
        borders = [b // (shape.heads // shape.kv_heads) + d for b in range(0, 1024, prefill.ROWS) for d in (-1, 0, 1)]
        picked = {0, 1, 2, count - 3, count - 2, count - 1, *borders, *rng.integers(0, count, SAMPLED).tolist()}
        tokens = sorted(token for token in picked if 0 <= token < count)
        right = np.stack([_attended(shape, given, slot, t, keys[:, : past + t + 1], values) for t in tokens])
        errors.append(relative_rms(o[slot, tokens], right))
    return max(errors), max(cached)


def _heads(rows: np.ndarray, shape: inputs.Shape) -> np.ndarray:
    return rows.reshape(len(rows), shape.kv_heads, shape.head_dim).transpose(1, 0, 2)


def _attended(
    shape: inputs.Shape, given: Arrays, slot: int, token: int, keys: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """o [heads, D] of one token in float64."""
    q, gate = (
        given[name][slot, token].astype(np.float64).reshape(shape.kv_heads, -1, shape.head_dim)
        for name in ("q", "gate")
    )
    scores = q @ keys.transpose(0, 2, 1) * shape.head_dim**-0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    o = weights @ values[:, : keys.shape[1]] / weights.sum(axis=-1, keepdims=True)
    return np.asarray(o / (1 + np.exp(-gate))).reshape(shape.heads, shape.head_dim)


def attention(run: Run) -> Iterator[Row]:
    """Decode and speculation by length; the E4M3 cache is timed, its errors are the tests'. Then prompts."""
    heads, kv_heads = (6, 1) if run.small else (24, 4)
    cases = [(1, 1, 100), (2, 4, 70)] if run.small else [(1, 1, 1024), (1, 1, 32768), (1, 4, 32768), (16, 1, 4096)]
    for slots, tokens, past in cases:
        for cache in ("bf16", "e4m3"):
            shape = inputs.Shape(slots, tokens, heads, kv_heads, capacity=past + tokens, cache_dtype=cache)
            given, by = inputs.make(shape, run.seed, np.full(slots, past)), launch.plan(shape)
            work = {"workspace": np.zeros(max(16, by.workspace_bytes()), np.uint8)}
            arrays = given | inputs.outputs(shape) | work
            row = Row("attention", f"B={slots} T={tokens} past={past} {cache}")

            def plan(b: Buffers, by: launch.Plan = by) -> list[Launch]:
                return launch.attention(by, b.at)

            found = once(run, SOURCE, arrays, plan).read("o")
            row.passed = bool(np.isfinite(found.astype(np.float32)).all())
            if cache == "bf16":
                row.error = relative_rms(found, expected_attention(shape, given))
                row.passed = row.error <= TOLERANCE["bf16"]
            rivals = {"torch sdpa": peers.sdpa(shape)} if run.rivals and cache == "bf16" else {}
            yield measure(
                run, row, SOURCE, arrays, plan, attention_bytes(shape, past + tokens), _flops(shape, past), rivals
            )
    yield from prompts(run, heads, kv_heads)


def prompts(run: Run, heads: int, kv_heads: int) -> Iterator[Row]:
    """Prompts by tiles, and on sm_90 by warpgroup products, which the engine then takes: ragged slots are checked only.
    The caches hold earlier keys, prompts end within tiles of either kernel."""
    if run.small:
        cases = [([30], 70, [70]), ([0, 81, 5], 50, [50, 23, 0])]
    else:
        cases = [([0], 2048, [2048]), ([6144], 2048, [2048]), ([0], 4096, [4096]), ([4096], 4096, [4096])]
        cases += [([32768], 2048, [2048]), ([0, 1111, 4003], 700, [700, 333, 0])]
    kinds = ("bf16", "e4m3", "bf16 wgmma") if run.device.capability == prefill.HOPPER else ("bf16", "e4m3")
    for past, tokens, counts in cases:
        for kind in kinds:
            cache = kind.split()[0]
            shape = inputs.Shape(len(past), tokens, heads, kv_heads, 256, max(past) + tokens, cache)
            given, by = inputs.make(shape, run.seed, np.array(past), np.array(counts)), launch.plan(shape)
            work = {"workspace": np.zeros(max(16, by.workspace_bytes()), np.uint8)}
            arrays, source = given | inputs.outputs(shape) | work, WGMMA_SOURCE if "wgmma" in kind else SOURCE
            row = Row("attention", f"B={len(past)} T={tokens} past={','.join(map(str, past))} {kind}")

            def plan(b: Buffers, by: launch.Plan = by, kind: str = kind) -> list[Launch]:
                return [prefill.attention(by.shape, b.at)] if "wgmma" in kind else launch.attention(by, b.at)

            buffers = once(run, source, arrays, plan)
            if cache == "bf16":
                read = {name: buffers.read(name) for name in ("o", "k_cache", "v_cache")}
                row.error, row.state_error = prompt_errors(shape, given, read, run.seed)
                row.passed = row.error <= TOLERANCE["bf16"] and row.state_error == 0
            else:
                row.passed = bool(np.isfinite(buffers.read("o").astype(np.float32)).all())
            if len(past) > 1:
                yield row
                continue
            rivals = {"torch sdpa": peers.sdpa(shape)} if run.rivals and kind == "bf16" else {}
            moved = attention_bytes(shape, past[0] + tokens)
            yield measure(run, row, source, arrays, plan, moved, _flops(shape, past[0]), rivals)


def _flops(shape: inputs.Shape, past: int) -> int:
    return 4 * shape.slots * shape.tokens * (past + (shape.tokens + 1) // 2) * shape.heads * shape.head_dim
