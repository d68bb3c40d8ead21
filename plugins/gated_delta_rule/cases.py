"""Calls of the gated delta rule that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import LIMITS, PAIRS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.dtypes import poisoned
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.gated_delta_rule.norm import Norm, conv_decode_norm, decode_norm
from deltart.plugins.gated_delta_rule.op import CONV_GATED_DELTA_NORM, GATED_DELTA_NORM, GATED_DELTA_RULE
from deltart.plugins.launch import Launch
from deltart.plugins.spec import I32, OpSpec
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, heads = (0, 1, 8, 9, 33, 64, 65, 1000, 2049), ((16, 48), (1, 3), (16, 32), (3, 4))
    widths = ((128, 128), (64, 1024), (64, 16), (128, 32), (128, 8), (128, 12))
    for b, t, (hk, hv), (dk, dv), types in product((1, 7, 8, 85), tokens, heads, widths, PAIRS):
        attributes = {"num_k_heads": hk, "num_v_heads": hv, "head_k_dim": dk, "head_v_dim": dv}
        for limit in LIMITS if t > 8 else LIMITS[:1]:
            sizes = {"B": b, "T": t, "C": 2 * hk * dk + hv * dv}
            yield op_call(GATED_DELTA_RULE, sizes, attributes, types, limit)


def timed_joined(small: bool) -> Iterator[KernelCase]:
    """The rule with its neighbours in one launch, as the 27B model decodes and speculates, or `small`."""
    key_heads, value_heads = (1, 3) if small else (16, 48)
    for slots, tokens in ((2, 1), (1, 4)) if small else ((1, 1), (64, 1), (1, 4)):
        shape = inputs.Shape(slots, tokens, key_heads, value_heads)
        for spec, what in ((GATED_DELTA_NORM, "delta rule, norm"), (CONV_GATED_DELTA_NORM, "conv, delta rule, norm")):
            yield _joined(spec, f"{what} B={slots} T={tokens}", shape)


def _joined(spec: OpSpec, name: str, shape: inputs.Shape) -> KernelCase:
    norm, convolves = Norm(), spec is CONV_GATED_DELTA_NORM
    sizes = conv_inputs.Shape(shape.slots, shape.tokens, shape.width)

    def given(seed: int) -> Arrays:
        arrays = inputs.make(shape, seed) | inputs.gating(shape, seed, norm.weight_dtype)
        if not convolves:
            return arrays
        conv = {f"conv_{name}": array for name, array in conv_inputs.make(sizes, seed).items() if name != "x"}
        conv["conv_commit"] = conv.pop("conv_n_commit")
        arrived = np.zeros(shape.slots * shape.key_heads, np.int32)
        return {"x": arrays.pop("qkv")} | conv | arrays | {"arrived": arrived}

    def expected(arrays: Arrays) -> Arrays:
        wide = (arrays[t.name] if t.dtype == I32 else arrays[t.name].astype(np.float64) for t in spec.inputs)
        heads = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
        results = spec.reference(*wide, *heads, norm.epsilon)
        return {tensor.name: array for tensor, array in zip(spec.outputs, results, strict=True)}

    def launches(at: dict[str, int]) -> list[Launch]:
        return [conv_decode_norm(shape, norm, sizes.parameter_dtype, at) if convolves else decode_norm(shape, norm, at)]

    # Behind the convolution, S takes in values that were rounded.
    tolerance = {"y": TOLERANCE[shape.dtype], "S": TOLERANCE[shape.dtype if convolves else "state"]}
    return KernelCase(
        name=name,
        source=Path(__file__).parent / ("conv.cu" if convolves else "norm.cu"),
        given=given,
        outputs=lambda: {"y": poisoned((shape.slots, shape.tokens, shape.value_heads * shape.value_dim), shape.dtype)},
        launches=launches,
        expected=expected,
        tolerance=tolerance | {"conv_state": 0.0},
        rewritten=("S", "conv_state"),
    )


CALLS = {"GatedDeltaRule": calls}
