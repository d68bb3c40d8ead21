"""Seconds of a call on a device: each kind of block bound by memory or arithmetic, and what each layer costs besides.

The factors are fitted to figures that others published (`bench/planner` has the fit and its errors): no figure
of DeltaRT on a GPU exists. So a prediction says what a good engine of today reaches, not what ours does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltart.planner.devices import Device
from deltart.planner.traffic import CACHE, RECURRENT, Call, Model, Work

CPU_LAYER_SECONDS = 25e-6


@dataclass(frozen=True)
class Factors:
    """What is reached of a data sheet.

    Attributes:
        bandwidth: share of the memory's peak bandwidth.
        arithmetic: share of the peak rate of products.
        layer_seconds: of a layer's launches and small kernels, in every call.
        row_seconds: of every sequence of a step but the first: its sampling, its drafts, its share of small kernels.
        request_seconds: of a server, from a request's arrival to the first token, besides the model's own time.
    """

    bandwidth: float
    arithmetic: float
    layer_seconds: float
    row_seconds: float = 0.0
    request_seconds: float = 0.0


FITTED = Factors(
    bandwidth=0.92, arithmetic=0.47, layer_seconds=74e-6, row_seconds=320e-6, request_seconds=0.08
)  # fmt: skip
IDEAL = Factors(1.0, 1.0, 0.0)
MEASURED = Factors(1.0, 1.0, CPU_LAYER_SECONDS)  # of a device whose rates were measured, not stated


@dataclass(frozen=True)
class Prediction:
    """Seconds of a call.

    Attributes:
        by_kind: seconds of each kind of block.
        overhead: seconds that follow from the number of layers and devices alone.
        nbytes: moved, over all devices.
        binds: what takes the largest part: "bandwidth", "arithmetic" or "launches".
    """

    seconds: float
    by_kind: Mapping[str, float]
    overhead: float
    nbytes: float
    binds: str


def predict(model: Model, device: Device, call: Call, factors: Factors = FITTED, parallel: int = 1) -> Prediction:
    """One call on `parallel` devices that share every layer (tensor parallel; the K/V heads bound how far)."""
    rate = device.fp8 if model.narrow and device.fp8 else device.bf16
    bandwidth, products, wide = device.bandwidth * factors.bandwidth, rate * factors.arithmetic, device.bf16
    by_kind, moving, computing = dict[str, float](), 0.0, 0.0
    work = model.work(call)
    for kind, each in work.items():
        over = min(parallel, model.kv_heads) if kind == CACHE else parallel
        memory = each.nbytes / over / bandwidth
        arithmetic = (each.flops / products + each.wide / (wide * factors.arithmetic)) / over
        by_kind[kind] = max(memory, arithmetic)
        moving += memory if memory >= arithmetic else 0.0
        computing += arithmetic if arithmetic > memory else 0.0
    overhead = factors.layer_seconds * (model.layers + call.drafts) + factors.row_seconds * (call.rows - 1)
    overhead += _reductions(model, device, call, parallel)
    shares = {"bandwidth": moving, "arithmetic": computing, "launches": overhead}
    nbytes = sum((each.nbytes for each in work.values()), 0.0)
    return Prediction(sum(by_kind.values()) + overhead, by_kind, overhead, nbytes, max(shares, key=lambda s: shares[s]))


def prefill(
    model: Model, device: Device, tokens: int, factors: Factors = FITTED, parallel: int = 1, chunk: int = 8192
) -> Prediction:
    """Reading a prompt of `tokens` in calls of up to `chunk`, the last with its last token's logits."""
    calls = [Call(1, min(chunk, tokens - past), past, logits=1) for past in range(0, tokens, chunk)]
    parts = [predict(model, device, call, factors, parallel) for call in calls]
    kinds = {kind: sum(part.by_kind[kind] for part in parts) for kind in parts[0].by_kind}
    longest = max(parts, key=lambda part: part.seconds)
    overhead, nbytes = sum(p.overhead for p in parts), sum(p.nbytes for p in parts)
    return Prediction(sum(p.seconds for p in parts), kinds, overhead, nbytes, longest.binds)


def tokens_per_step(drafts: int, acceptance: float) -> float:
    """Expected tokens of a row's step with so many drafts, each right with this probability if those before were."""
    return sum(acceptance**place for place in range(drafts + 1))


def _reductions(model: Model, device: Device, call: Call, parallel: int) -> float:
    """Two sums over the devices in every layer."""
    if parallel == 1:
        return 0.0
    moved = 2 * (parallel - 1) / parallel * call.rows * call.tokens * model.hidden * 2
    return 2 * (model.layers + call.drafts) * (device.link_seconds + (moved / device.link if device.link else 0.0))


__all__ = ["CACHE", "FITTED", "IDEAL", "MEASURED", "RECURRENT", "Factors", "Prediction", "Work", "predict", "prefill"]
