"""What a step has to move through memory, and the rates that follow from it."""

from __future__ import annotations

import math

from deltart.runtime.backends.gpu.engine_manifest import PlanEntry

# Qwen3.6-27B-FP8, batch 1, no speculation: tokens/s that peak bandwidth allows, by device and tokens of context.
BOUNDS = {
    "H100": {0: 123.0, 32768: 114.0, 131072: 94.0, 262144: 75.0},
    "H200": {0: 176.0, 32768: 163.0, 131072: 134.0, 262144: 108.0},
}
ANCHOR_WEIGHT_BYTES = 26.9e9


def state_bytes(plan: PlanEntry, context: int) -> int:
    """Bytes of one slot's states that a decode step moves: recurrent ones in and out, `context` rows of the caches in.

    Types are the plan's, which may be narrower than the portable graph's.
    """
    sizes = {"B": 1, "capacity": context}
    return sum(b.nbytes(sizes) * (1 if "capacity" in b.axes else 2) for b in plan.by_role["state"])


def published_bound(device: str, weights: int, context: int) -> float | None:
    """The bound of BOUNDS for this device, model and context; None where it has none."""
    rows = next((rows for name, rows in BOUNDS.items() if name in device), {})
    known = math.isclose(weights, ANCHOR_WEIGHT_BYTES, rel_tol=0.02)
    return rows.get(context) if known else None
