"""The sections of the block-FP8 linear, the attention, the gated norm, the LM head and the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.kernels import peers_linear as peers
from bench.kernels.device import Buffers, Cuda
from bench.kernels.linear import linear, once
from bench.kernels.sections import Arrays, Run, measure
from bench.kernels.table import Row
from deltart.plugins import gated_attention, gated_rms_norm, lm_head, residual_rms_norm, sampler
from deltart.plugins.gated_attention import inputs as attention_inputs
from deltart.plugins.gated_attention import launch as attention_launch
from deltart.plugins.gated_attention.reference import gated_attention as attention_reference
from deltart.plugins.gated_rms_norm import inputs as norm_inputs
from deltart.plugins.gated_rms_norm import launch as norm_launch
from deltart.plugins.gated_rms_norm.reference import gated_rms_norm as norm_reference
from deltart.plugins.launch import Launch
from deltart.plugins.lm_head import inputs as head_inputs
from deltart.plugins.lm_head import launch as head_launch
from deltart.plugins.lm_head.reference import best
from deltart.plugins.residual_rms_norm import inputs as residual_inputs
from deltart.plugins.residual_rms_norm import launch as residual_launch
from deltart.plugins.residual_rms_norm.reference import residual_rms_norm as residual_reference
from deltart.plugins.sampler import inputs as sampler_inputs
from deltart.plugins.sampler import launch as sampler_launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

ATTENTION, NORM, RESIDUAL, HEAD, SAMPLER = (
    Path(str(package.__file__)).parent
    for package in (gated_attention, gated_rms_norm, residual_rms_norm, lm_head, sampler)
)
SAMPLED_ROWS = 256  # of the LM head, compared with float64


def attention_bytes(shape: attention_inputs.Shape, length: int) -> int:
    """Keys and values in use, read once; q, gate and o."""
    keys = 2 * shape.slots * shape.kv_heads * length * shape.head_dim * (1 if shape.cache_dtype == "e4m3" else 2)
    return keys + 6 * shape.slots * shape.tokens * shape.heads * shape.head_dim


def expected_attention(shape: attention_inputs.Shape, given: Arrays) -> np.ndarray:
    """The reference on contiguous bf16 caches."""
    names = ("q", "k", "v", "gate", "k_cache", "v_cache")
    wide = [given[name].astype(np.float64) for name in names]
    lengths = (given["past_len"], given["n_tokens"])
    return attention_reference(*wide, *lengths, shape.heads, shape.kv_heads, shape.head_dim)[0]


def attention(run: Run) -> Iterator[Row]:
    """Decode and speculation by length, prefill; the E4M3 cache is timed, its errors are the tests'."""
    heads = {"heads": 6, "kv_heads": 1} if run.small else {}
    cases = [(1, 1, 100), (2, 4, 70)] if run.small else [(1, 1, 1024), (1, 1, 32768), (1, 4, 32768), (16, 1, 4096)]
    cases += [(1, 70, 30)] if run.small else [(1, 2048, 0), (1, 2048, 6144)]
    for slots, tokens, past in cases:
        for cache in ("bf16", "e4m3"):
            shape = attention_inputs.Shape(slots, tokens, **heads, capacity=past + tokens, cache_dtype=cache)
            given = attention_inputs.make(shape, run.seed, np.full(slots, past))
            by = attention_launch.plan(shape)
            work = {"workspace": np.zeros(max(16, by.workspace_bytes()), np.uint8)}
            arrays, row = (
                given | attention_inputs.outputs(shape) | work,
                Row("attention", f"B={slots} T={tokens} past={past} {cache}"),
            )

            def plan(b: Buffers, by: attention_launch.Plan = by) -> list[Launch]:
                return attention_launch.attention(by, b.at)

            found = once(run, ATTENTION / "kernel.cu", arrays, plan).read("o")
            row.passed = bool(np.isfinite(found.astype(np.float32)).all())
            if cache == "bf16" and tokens < 100:
                row.error = relative_rms(found, expected_attention(shape, given))
                row.passed = row.error <= TOLERANCE["bf16"]
            rivals = {"torch sdpa": peers.sdpa(shape)} if isinstance(run.device, Cuda) and cache == "bf16" else {}
            flops = 4 * slots * tokens * (past + (tokens + 1) // 2) * shape.heads * shape.head_dim
            moved = attention_bytes(shape, past + tokens)
            yield measure(run, row, ATTENTION / "kernel.cu", arrays, plan, moved, flops, rivals)


def norm(run: Run) -> Iterator[Row]:
    """The gated RMS norm of one token and of a long prompt."""
    for tokens in (1, 9) if run.small else (1, 64, 8192):
        shape = norm_inputs.Shape(tokens=tokens, heads=3 if run.small else 48)
        row, given = Row("norm", f"T={tokens}"), norm_inputs.make(shape, run.seed)
        arrays = given | norm_inputs.outputs(shape)

        def plan(b: Buffers, shape: norm_inputs.Shape = shape) -> list[Launch]:
            return [norm_launch.norm(shape, b.at)]

        found = once(run, NORM / "kernel.cu", arrays, plan).read("y")
        (expected,) = norm_reference(*(given[name].astype(np.float64) for name in ("x", "weight", "z")), shape.epsilon)
        row.error = relative_rms(found, expected)
        row.passed = row.error <= TOLERANCE[shape.dtype]
        yield measure(run, row, NORM / "kernel.cu", arrays, plan, sum(a.nbytes for a in arrays.values()), 0, {})


def residual_norm(run: Run) -> Iterator[Row]:
    """The residual sum and the norm after it."""
    for tokens in (1, 9) if run.small else (1, 64, 8192):
        shape = residual_inputs.Shape(tokens, 1000 if run.small else 5120)
        row, given = Row("residual", f"T={tokens}"), residual_inputs.make(shape, run.seed)
        arrays = given | residual_inputs.outputs(shape)

        def plan(b: Buffers, shape: residual_inputs.Shape = shape) -> list[Launch]:
            return [residual_launch.norm(shape, b.at)]

        buffers = once(run, RESIDUAL / "kernel.cu", arrays, plan)
        wide = (given[name].astype(np.float64) for name in ("x", "h", "weight"))
        y, h = residual_reference(*wide, shape.epsilon)
        row.error, row.state_error = relative_rms(buffers.read("y"), y), relative_rms(buffers.read("h"), h)
        row.passed = max(row.error, row.state_error) <= TOLERANCE[shape.dtype]
        moved = sum(a.nbytes for a in arrays.values()) + given["h"].nbytes
        yield measure(run, row, RESIDUAL / "kernel.cu", arrays, plan, moved, 0, {})


def head(run: Run) -> Iterator[Row]:
    """The LM head with its best tokens: bf16, block FP8, and a draft head of 32768 rows."""
    sizes = {"vocabulary": 1000, "k": 208, "limit": 900} if run.small else {}
    whole = head_inputs.Shape(keep=20, **sizes)
    subset = replace(whole, keep=1, subset=300 if run.small else 32768)
    for shape in (whole, replace(whole, rows=8), replace(whole, weight_dtype="e4m3"), subset):
        row = Row("head", f"M={shape.rows} {shape.weight_dtype} of {shape.scored} keep={shape.keep}")
        arrays = head_inputs.make(shape, run.seed) | head_inputs.outputs(shape)
        arrays |= {name: np.zeros(size, np.uint8) for name, size in head_launch.workspace(shape).items()}

        def plan(b: Buffers, shape: head_inputs.Shape = shape) -> list[Launch]:
            return head_launch.head(shape, b.at)

        buffers = once(run, HEAD / "kernel.cu", arrays, plan)
        ids = arrays.get("ids", np.arange(shape.vocabulary, dtype=np.int32))
        _, expected = best(buffers.read("logits").astype(np.float64), ids, shape.limit, shape.keep)
        row.passed = bool((buffers.read("best_ids") == expected).all())
        if shape.weight_dtype == "bf16":
            rows = np.random.default_rng(run.seed).integers(0, shape.scored, SAMPLED_ROWS)
            weight = arrays["weight"][ids[rows]].astype(np.float64)
            row.error = relative_rms(buffers.read("logits")[:, rows], arrays["x"].astype(np.float64) @ weight.T)
            row.passed &= row.error <= TOLERANCE["f32"]
        moved = arrays["weight"].nbytes * shape.scored // shape.vocabulary + arrays["logits"].nbytes
        yield measure(run, row, HEAD / "kernel.cu", arrays, plan, moved, 0, {})


def draw(run: Run) -> Iterator[Row]:
    """The sampler at its default settings, with top-k 20 and with every penalty."""
    shape = sampler_inputs.Shape(1, *((1000, 900) if run.small else (248320, 248077)))
    logits = 3 * np.random.default_rng(run.seed).standard_normal((1, shape.vocabulary), np.float32)
    thinking = sampler_inputs.Settings(top_k=20, top_p=0.95, seed=run.seed)
    penalised = replace(thinking, temperature=0.7, top_p=0.8, presence_penalty=1.5)
    for name, settings in (("plain", sampler_inputs.Settings()), ("thinking", thinking), ("penalties", penalised)):
        arrays = sampler_inputs.pack([settings]) | {"logits": logits}
        arrays |= {name: np.zeros(size, np.uint8) for name, size in sampler_launch.workspace(shape).items()}
        arrays |= {"token": np.full(1, -7, np.int32)}
        if name == "penalties":
            arrays["counts"] = np.zeros((1, shape.vocabulary), np.int32)
        plan = partial(lambda b, shape: sampler_launch.sample(shape, b.at), shape=shape)
        token = once(run, SAMPLER / "kernel.cu", arrays, plan).read("token")[0]
        row = Row("sampler", name, passed=bool(0 <= token < shape.limit))
        if settings.top_k:
            row.passed &= bool((logits[0, : shape.limit] > logits[0, token]).sum() < settings.top_k)
        yield measure(run, row, SAMPLER / "kernel.cu", arrays, plan, logits.nbytes, 0, {})


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "linear": linear,
    "attention": attention,
    "norm": norm,
    "residual": residual_norm,
    "head": head,
    "sampler": draw,
}
