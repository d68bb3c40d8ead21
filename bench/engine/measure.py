"""Timings of an engine through the runtime's own backend: decode and speculative steps, prefill, generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from bench.engine import trace, traffic
from bench.engine.device import Device
from deltart.planner.traffic import decode_weight_bytes
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.slots import Row
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.text.tokenizer import Tokenizer

WARM_UP = 3  # calls: one plain, one captured, one replayed
REPLAYS = 20  # of a captured graph, back to back

Timing = dict[str, Any]


def decode(
    device: Device, backend: TensorRtBackend, context: int, steps: int, copy_gbs: float, traced: bool = False
) -> Timing:
    """A greedy decode step of every slot, over `context` tokens that are there already, as generation takes it.

    wall_ms: from token to token, as the host sees it. device_ms: the captured graph of engine and sampler alone,
    replayed back to back. host_ms: the difference. The cache holds zeros: the time does not depend on values.
    kernels: what each of its kernels takes, if `traced`.
    """
    slots, vocabulary = backend.engine.slots, backend.manifest.vocab_size
    state = backend.new_state("model", slots, context + WARM_UP + steps + REPLAYS + 1)
    params = SamplingParams(temperature=0, ignore_eos=True)
    loop = backend.decode_loop(state, vocabulary)
    rows = {slot: Row(context, [0], Sampler(params, [0], vocabulary)) for slot in range(slots)}
    for slot, row in rows.items():
        loop.set(slot, row)
    for _ in range(WARM_UP):
        loop.step(rows)
    wall = median(_seconds(lambda: loop.step(rows)) for _ in range(steps)) * 1e3
    timed: Timing = {"context": context, "tokens": 1, "slots": slots}
    timed |= {"wall_ms": wall, "tokens_per_s": slots / wall * 1e3}
    row = _replayed(device, backend, timed, loop.graphs, copy_gbs)
    if traced and loop.graphs:
        row["kernels"] = trace.kernel_times(lambda: device.cuda.launch(loop.graphs[0]), device.cuda.synchronize)
    return row


def speculate(
    device: Device, backend: TensorRtBackend, context: int, tokens: int, steps: int, copy_gbs: float
) -> Timing:
    """A call of `tokens` tokens in every slot, all but one drafts, and the logits of all; else as `decode`."""
    slots = backend.engine.slots
    state = backend.new_state("model", slots, context + tokens)
    ids, past = np.zeros((slots, tokens), np.int64), np.full(slots, context, np.int32)
    index = np.tile(np.arange(tokens), (slots, 1))
    inputs = text_inputs(ids, past, logit_index=index, n_commit=np.ones(slots, np.int32))

    def call() -> None:
        (logits,) = backend.run("model", state, inputs, ["logits"])
        logits.argmax(-1)

    for _ in range(WARM_UP):
        call()
    wall = median(_seconds(call) for _ in range(steps)) * 1e3
    row: Timing = {"context": context, "tokens": tokens, "slots": slots, "wall_ms": wall}
    return _replayed(device, backend, row, [graph for graph in state.graphs.values() if graph is not None], copy_gbs)


def _replayed(device: Device, backend: TensorRtBackend, row: Timing, graphs: Sequence[Any], copy_gbs: float) -> Timing:
    """`row` with the times of its captured graph, and what they make of the bandwidth."""
    if graphs:

        def replay() -> None:
            for _ in range(REPLAYS):
                device.cuda.launch(graphs[0])

        taken = device.milliseconds(replay) / REPLAYS
        row |= {"device_ms": taken, "host_ms": row["wall_ms"] - taken}
    return row | _against_bandwidth(device, backend, row, copy_gbs)


def _against_bandwidth(device: Device, backend: TensorRtBackend, row: Timing, copy_gbs: float) -> Timing:
    weights = decode_weight_bytes(backend.manifest, row["slots"], row["tokens"])
    plan = backend.engine.plans["model.decode"]
    moved = weights + row["slots"] * traffic.state_bytes(plan, row["context"])
    found: Timing = {"bytes": moved, "gbs": moved / row.get("device_ms", row["wall_ms"]) / 1e6}
    if copy_gbs:
        found["percent_of_copy"] = 100 * found["gbs"] / copy_gbs
        found["ms_at_copy"] = moved / copy_gbs / 1e6
    bound = traffic.published_bound(device.name, weights, row["context"])
    if bound is not None and row["slots"] == row["tokens"] == 1:
        found |= {"published_bound": bound, "percent_of_bound": 100 * row["tokens_per_s"] / bound}
    return found


def prefill(backend: TensorRtBackend, tokens: int, traced: bool = False, repeats: int = 3) -> Timing:
    """A prompt of `tokens` into an empty slot, up to its last token's logits; `kernels` as in `decode`."""
    ids, past = np.zeros((1, tokens), np.int64), np.zeros(1, np.int32)

    def call() -> None:
        backend.run("model", backend.new_state("model", 1, tokens), text_inputs(ids, past), ["logits"])

    call()
    wall = median(_seconds(call) for _ in range(repeats))
    row: Timing = {"tokens": tokens, "wall_ms": wall * 1e3, "tokens_per_s": tokens / wall}
    if traced:
        row["kernels"] = trace.kernel_times(call, backend.cuda.synchronize, repeats=1)
    return row


def generation(backend: TensorRtBackend, tokenizer: Tokenizer, new_tokens: int) -> Timing:
    """Greedy text from a short prompt by the engine that serves users; the second of two runs."""
    params = SamplingParams(temperature=0, max_new_tokens=new_tokens, ignore_eos=True)
    options = EngineOptions(slots=1, max_model_len=new_tokens + 64, cache_bytes=0)
    with Engine(backend, tokenizer, None, options) as engine:
        usage = [engine.generate([0] * 16, params).usage for _ in range(2)][-1]
    return {"new_tokens": usage.completion_tokens, "tokens_per_s": usage.decode_rate}


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
