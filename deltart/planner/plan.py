"""A plan: what of a model fits on devices, and how fast it is there at several lengths and batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltart.errors import PlanError
from deltart.manifest import Manifest
from deltart.planner.devices import Device
from deltart.planner.predict import FITTED, MEASURED, Factors, Prediction, predict, prefill, tokens_per_step
from deltart.planner.traffic import Call, Model, has_bf16_head, read_model

RESERVE = 0.05  # of a device's memory: its driver's context, plans, scratch, the allocator's rounding
MAX_CONTEXT, MAX_BATCH = 1_048_576, 256
CONTEXTS, BATCHES = (1024, 32_768, 131_072, 262_144, MAX_CONTEXT), (1, 8, 64, MAX_BATCH)
PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """One context and batch on one device, or on `parallel` of them.

    Attributes:
        memory: bytes on each device: weights, states, K/V, what the vision tower works in, reserve.
        fits: whether each has them.
        step: of a decode step.
        step_tokens: expected tokens of a row in it.
        prompt: of reading a prompt of the whole context.
    """

    context: int
    batch: int
    memory: float
    fits: bool
    step: Prediction
    step_tokens: float
    prompt: Prediction

    @property
    def row_rate(self) -> float:
        """Tokens/s of one sequence."""
        return self.step_tokens / self.step.seconds

    @property
    def rate(self) -> float:
        """Tokens/s of all sequences."""
        return self.batch * self.row_rate

    @property
    def binds(self) -> str:
        """What limits it: memory, where it does not fit, else what takes the largest part of a step."""
        return self.step.binds if self.fits else "memory"


@dataclass(frozen=True)
class Plan:
    """All points of one device.

    Attributes:
        weights: bytes on each device.
        most_context: tokens that one sequence can have there; 0 where not even the weights fit.
        smallest_parallel: the least number of such devices whose memory takes the first point; None for more than 8.
    """

    device: Device
    parallel: int
    replicas: int
    weights: float
    most_context: int
    smallest_parallel: int | None
    points: Sequence[Point]

    @property
    def devices(self) -> int:
        """All that it takes."""
        return self.parallel * self.replicas


def make_plan(
    manifest: Manifest, device: Device, contexts: Sequence[int] = CONTEXTS, batches: Sequence[int] = BATCHES, *,
    parallel: int = 1, replicas: int = 1, drafts: int = 0, acceptance: float = 0.8, cache_bytes: int = 2,
    fp8_head: bool = False,
) -> Plan:  # fmt: skip
    """The plan of an artifact for a device.

    Args:
        contexts: tokens of a sequence, up to MAX_CONTEXT.
        batches: sequences at once, up to MAX_BATCH.
        parallel: devices that share every layer.
        replicas: independent copies of the whole.
        drafts: of the MTP head in each step, each right with probability `acceptance` if those before were.
        cache_bytes: of an element of K/V on a GPU.
        fp8_head: whether a GPU holds the LM head in E4M3.

    Raises:
        PlanError: there is no MTP head, no bfloat16 head for `fp8_head`, or a number is out of its range.
    """
    on_gpu = not device.float_weights
    if fp8_head and not (on_gpu and has_bf16_head(manifest)):
        found = "this CPU" if not on_gpu else "a head that is not stored in bfloat16"
        raise PlanError(f"an FP8 head on {found}", "a bfloat16 head, on a GPU", "leave --lm-head away")
    model = read_model(manifest, float_weights=not on_gpu, cache_bytes=cache_bytes, fp8_head=fp8_head)
    if drafts and not model.draft_weights:
        raise PlanError(f"{drafts} drafts", "none: the artifact has no MTP head", "export it with its MTP head")
    if not all(1 <= c <= MAX_CONTEXT for c in contexts) or not all(1 <= b <= MAX_BATCH for b in batches):
        raise PlanError(f"contexts {list(contexts)}, batches {list(batches)}", f"1 to {MAX_CONTEXT}, 1 to {MAX_BATCH}")
    factors = MEASURED if device.float_weights else FITTED
    points = [
        _point(model, device, factors, context, batch, parallel, drafts, tokens_per_step(drafts, acceptance))
        for context in contexts
        for batch in batches
    ]
    first = (contexts[0], batches[0])
    smallest = next((n for n in PARALLEL if needed(model, device, *first, n) <= device.memory), None)
    weights = model.stored_bytes / parallel
    return Plan(device, parallel, replicas, weights, most_context(model, device, parallel), smallest, points)


def needed(model: Model, device: Device, context: int, batch: int, parallel: int = 1) -> float:
    """Bytes on each device. K/V is shared among as many devices as there are heads of it."""
    heads = math.ceil(model.kv_heads / min(parallel, model.kv_heads)) / model.kv_heads
    row = model.slot_bytes / parallel + context * heads * (model.token_bytes + model.draft_token_bytes)
    return model.stored_bytes / parallel + model.tower_bytes + batch * row + RESERVE * device.memory


def most_context(model: Model, device: Device, parallel: int = 1) -> int:
    """Tokens of the longest sequence that fits by itself, beyond any limit of the model."""
    empty = needed(model, device, 0, 1, parallel)
    each = needed(model, device, 1, 1, parallel) - empty
    return max(int((device.memory - empty) / each), 0)


def _point(
    model: Model, device: Device, factors: Factors, context: int, batch: int, parallel: int, drafts: int, tokens: float
) -> Point:
    call = Call(batch, 1 + drafts, context, drafts, 1 + drafts)
    memory = needed(model, device, context, batch, parallel)
    step = predict(model, device, call, factors, parallel)
    prompt = prefill(model, device, context, factors, parallel)
    return Point(context, batch, memory, memory <= device.memory, step, tokens, prompt)
