"""Where the time of a decode step goes on ONNX Runtime: by kind of block, from the session's own profile."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend, WeightMode

STEPS, WARM_UP = 24, 4
NESTING = ("If", "Loop", "Scan")  # their time is that of the nodes inside, which are listed too
_FUNCTION = re.compile(r"_inlfunc_([A-Za-z]+)")
# Nodes that the optimizer renamed are known by what they do; the others by the layer that they came from.
_BY_OP = {
    "DeltaNet kernels": {"CausalConvWithState", "LinearAttention", "LinearAttentionGate", "GatedRMSNorm"},
    "attention kernels": {"GroupQueryAttention", "MRotaryEmbedding", "RotaryEmbedding", "Attention"},
}
_BY_LAYER = {"GatedDeltaNetLayer": "DeltaNet layers", "GatedAttentionLayer": "attention layers", "Head": "head"}
REST = "rest"


@dataclass(frozen=True)
class Profile:
    """Seconds of one decode step by kind of block, medians over steps, and the nodes that it runs."""

    seconds: Mapping[str, float]
    nodes: float


def profile(artifact: Path, threads: int, weights: WeightMode) -> Profile:
    """Decode some tokens with the session's profiler on, which by itself costs time: shares say more than sums."""
    with tempfile.TemporaryDirectory() as folder:
        backend = OrtBackend(artifact, "ort", weights, threads, profile=str(Path(folder) / "nodes"))
        state = backend.new_state("model", 1, STEPS + WARM_UP + 1)
        for past in range(STEPS + WARM_UP):
            inputs = text_inputs(np.zeros((1, 1), np.int64), np.array([past], np.int32))
            backend.run("model", state, inputs, ["logits"])
        events = json.loads(Path(backend.session("model").end_profiling()).read_text(encoding="utf-8"))
    return summed(events)


def summed(events: Iterable[Mapping[str, Any]]) -> Profile:
    """The profile of a session's events: every run ends with one named model_run."""
    steps: list[dict[str, float]] = [defaultdict(float)]
    nodes = 0
    for event in sorted(events, key=lambda e: e["ts"] + e["dur"]):
        if event.get("name") == "model_run":
            steps.append(defaultdict(float))
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op = event["args"]["op_name"]
            steps[-1][_kind(event["name"], op)] += 0.0 if op in NESTING else event["dur"] / 1e6
            nodes += op not in NESTING
    runs = [step for step in steps if step]
    timed = runs[WARM_UP:] or runs
    kinds = sorted({kind for step in timed for kind in step})
    return Profile(
        {kind: float(np.median([step[kind] for step in timed])) for kind in kinds}, nodes / max(len(runs), 1)
    )


def _kind(name: str, op: str) -> str:
    found = _FUNCTION.match(name)
    by_layer = _BY_LAYER.get(found[1].partition("_")[0]) if found else None
    return by_layer or next((kind for kind, ops in _BY_OP.items() if op in ops), REST)
