"""Calls of the routed experts that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import PAIRS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear.prefill import ENOUGH_BLOCKS, HOPPER
from deltart.plugins.moe_experts import inputs, norm
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.launch import experts, source, workspace
from deltart.plugins.moe_experts.op import FP8_MOE_EXPERTS, FP8_SPARSE_MOE, MOE_EXPERTS, SPARSE_MOE
from deltart.plugins.moe_experts.prefill import WGMMA
from deltart.plugins.moe_experts.reference import route
from deltart.plugins.residual_rms_norm.reference import residual_rms_norm
from deltart.plugins.spec import OpSpec
from deltart.plugins.tolerance import TOLERANCE

# h is rounded to bfloat16 before it is rounded to E4M3, where that makes a neighbour of some: 1.1e-2 was seen.
W8A8_TOLERANCE = 2e-2
EPSILON = 1e-6  # of the norm behind
WIDENED = 1 << 24  # values at most that are made float64 at once: of all experts' weights those of one at a time
SPECS = {
    ("bf16", False): MOE_EXPERTS,
    ("bf16", True): SPARSE_MOE,
    ("e4m3", False): FP8_MOE_EXPERTS,
    ("e4m3", True): FP8_SPARSE_MOE,
}


def calls(spec: OpSpec) -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens = ((1, 0), (1, 1), (1, 8), (3, 3), (2, 8), (1, 17), (8, 8), (1, 65), (1, 1000))
    routed = ((256, 8, 2048, 512), (7, 7, 128, 80), (5, 1, 336, 16), (300, 300, 32, 48), (4, 5, 32, 16), (4, 2, 40, 16))
    for (b, t), (e, k, hidden, width), shared, types in product(tokens, routed, (512, 16, 24), PAIRS):
        sizes = {"B": b, "T": t, "E": e, "gate_up_rows": 2 * width, "one": 1, "shared_size": shared}
        for present in (e, max(1, e - 3)):
            sizes |= {"S": present, "parts": 3, "values": hidden * width}
            sizes |= {"blocks": -(-hidden // 128) * -(-width // 128)}
            sizes |= {"hidden_blocks": -(-hidden // 128), "shared_blocks": -(-shared // 128)}
            attributes = {"num_experts_per_tok": k, "hidden_size": hidden, "intermediate_size": width}
            if "quantize_activations" not in spec.attributes:
                yield op_call(spec, sizes, attributes, types)
                continue
            for capability in (80, 89, 90, 120):
                attributes |= {"quantize_activations": int(capability != 80)}
                yield replace(op_call(spec, sizes, attributes, types), capability=capability)
    one = op_call(spec, sizes, attributes, ("bf16", "bf16"))
    for tensor in spec.inputs:
        if tensor.name.startswith("shared") or tensor.name in ("down", "experts_scale"):
            yield replace(one, dtypes={**one.dtypes, tensor.name: "f32"})


def reference(shape: Shape, given: dict[str, np.ndarray]) -> np.ndarray:
    """The float64 result of the op that the shape is a call of."""
    spec = SPECS[shape.stored, shape.shared > 0]
    arrays = [given[tensor.name] for tensor in spec.inputs]
    wide = [a if a.dtype.kind in "iu" or a.size > WIDENED else a.astype(np.float64) for a in arrays]
    quantized = (1,) if shape.quantized else ()
    return spec.reference(*wide, shape.chosen, shape.hidden, shape.width, *quantized)[0]


def make_joined(shape: Shape, seed: int, n_tokens: list[int] | None = None, norm_dtype: str = "bf16") -> Arrays:
    """The inputs of a call with the norm behind it. Where there is no token, the residual is a number."""
    rng, size = np.random.default_rng(seed), (shape.slots, shape.tokens, shape.hidden)
    given = inputs.make(shape, seed, n_tokens) | {"residual": cast(rng.standard_normal(size), shape.dtype)}
    weight = cast(rng.uniform(-0.8, 1, shape.hidden), norm_dtype)
    return given | {"norm_weight": weight, "arrived": np.zeros(1, np.int32)}


def joined_outputs(shape: Shape) -> Arrays:
    """normed and sum, full of NaN, and the scratch."""
    size = (shape.slots, shape.tokens, shape.hidden)
    scratch = {name: np.full(nbytes, 0xFF, np.uint8) for name, nbytes in norm.workspace(shape).items()}
    return scratch | {name: poisoned(size, shape.dtype) for name in ("normed", "sum")}


def joined_case(shape: Shape) -> KernelCase:
    """A call of the experts and the norm behind them in one."""

    def expected(given: Arrays) -> Arrays:
        residual, weight = (given[name].astype(np.float64) for name in ("residual", "norm_weight"))
        results = residual_rms_norm(reference(shape, given), residual, weight, EPSILON)
        return dict(zip(("normed", "sum"), results, strict=True))

    return KernelCase(
        name=f"experts, norm {shape.stored} B={shape.slots} T={shape.tokens}",
        source=Path(__file__).parent / "decode.cu",
        given=lambda seed: make_joined(shape, seed),
        outputs=lambda: joined_outputs(shape),
        launches=lambda at: norm.experts_norm(shape, "bf16", EPSILON, at),
        expected=expected,
        tolerance=dict.fromkeys(("normed", "sum"), TOLERANCE[shape.dtype]),
        read=lambda arrays: bytes_read(shape, arrays),
    )


def timed_joined(small: bool) -> Iterator[KernelCase]:
    """A layer of the 35B model with the norm behind it, as it decodes and speculates, or `small` ones."""
    layer = Shape(hidden=128, experts=8, chosen=2, width=64, shared=64) if small else Shape()
    for tokens in (1, 4):
        yield joined_case(replace(layer, tokens=tokens))


def case(shape: Shape, capability: int = 0, multiprocessors: int = ENOUGH_BLOCKS) -> KernelCase:
    """A call with data, by the kernels of a GPU: see `launch.experts`."""

    def outputs() -> dict[str, np.ndarray]:
        scratch = {name: np.full(size, 0xFF, np.uint8) for name, size in workspace(shape).items()}
        return inputs.outputs(shape) | scratch

    return KernelCase(
        name=f"{_kind(shape, capability)} {shape.experts} x {shape.width} B={shape.slots} T={shape.tokens}",
        source=Path(__file__).parent / source(shape, capability),
        given=lambda seed: inputs.make(shape, seed),
        outputs=outputs,
        launches=lambda at: experts(shape, at, capability, multiprocessors),
        expected=lambda given: {"y": reference(shape, given)},
        tolerance={"y": W8A8_TOLERANCE if shape.quantized else TOLERANCE[shape.dtype]},
        read=lambda arrays: bytes_read(shape, arrays),
    )


def _kind(shape: Shape, capability: int) -> str:
    wgmma = source(shape, capability) == WGMMA.source
    return "w8a8 wgmma" if wgmma else "w8a8" if shape.quantized else shape.stored


def bytes_read(shape: Shape, arrays: dict[str, np.ndarray]) -> int:
    """The weights of the experts that some token chose, the shared one's, and all else but scratch."""
    chosen, _ = route(arrays["logits"].reshape(-1, shape.experts), shape.chosen)
    share = len(np.unique(chosen)) / shape.experts
    held = [arrays[name].nbytes for name in ("experts", "experts_scale", "gate_up", "down") if name in arrays]
    others = [array.nbytes for name, array in arrays.items() if name in ("x", "y", "logits") or "shared" in name]
    return round(share * sum(held)) + sum(others)


def timed(small: bool, capability: int = 0, multiprocessors: int = ENOUGH_BLOCKS) -> Iterator[KernelCase]:
    """Decode, verify and prefill of a layer of the 35B model, or `small` ones; on sm_90, prompts by warpgroups too."""
    layer = Shape(hidden=128, experts=8, chosen=2, width=64, shared=64) if small else Shape()
    for stored, tokens in (("e4m3", (1, 4, 16, 64, 1024)), ("bf16", (1, 1024))):
        for count in (1, 65) if small else tokens:
            yield case(replace(layer, tokens=count, stored=stored))
    yield case(replace(layer, tokens=65 if small else 1024, quantized=True))
    if capability == HOPPER:
        for count in (65,) if small else (1024, 4096):
            yield case(replace(layer, tokens=count, quantized=True), capability, multiprocessors)


CALLS = {spec.name: partial(calls, spec) for spec in SPECS.values()}
