"""What a TensorRT plugin does between TensorRT and the kernels, without either."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import trt_plugin
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.dims import Dim, expression
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.call import shape_of
from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
)
from deltart.plugins.gated_attention import plugin as attention
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.gated_delta_rule import plugin as delta
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.kernel_call import Call, kernel_of
from deltart.plugins.kernel_call import addresses as named_addresses
from deltart.plugins.lm_head.op import LM_HEAD
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.registry import OPS
from deltart.plugins.spec import ACT, FP8, OpSpec, TensorSpec
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.gdr_on_shim import addresses

HEADS = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}


class Builder:
    """Dimension expressions as text."""

    def constant(self, size: int) -> str:
        return str(size)

    def operation(self, sign: str, left: str, right: str) -> str:
        return f"({left}{sign}{right})"


def test_dimension_arithmetic() -> None:
    spec = OpSpec(
        "Op", "", (TensorSpec("x", ACT, ("B", "T", "D")),), (TensorSpec("y", ACT, ("B", "T+h", "h*D")),), lambda: ()
    )
    builder = Builder()
    shapes = [[Dim(name, builder, "+", "*") for name in ("b", "t", "d")]]
    (shape,) = spec.output_shapes(shapes, {"h": 4})
    assert [expression(size, builder) for size in shape] == ["b", "(t+4)", "(d*4)"]


def call_of(spec: OpSpec, given: list[np.ndarray], attributes: dict, outputs: dict[str, np.ndarray]) -> Call:
    kinds = {"float32": "f32", "bfloat16": "bf16", "int32": "i32", "float8_e4m3fn": "i8"}
    sizes = spec.bind_axes([a.shape for a in given], attributes)
    named = {t.name: a for t, a in zip(spec.inputs, given, strict=True)}
    dtypes = {name: kinds[a.dtype.name] for name, a in named.items()}
    return Call(sizes, dtypes, addresses(named, outputs), shared_limit=99 << 10)


def run_on_shim(spec: OpSpec, call: Call) -> None:
    kernel = kernel_of(spec)
    workspace = np.full(kernel.workspace_bytes(call), 0xFF, np.uint8)
    call.at["workspace"] = workspace.ctypes.data
    source, launches = kernel.launches(call)
    compile_cpu(kernel.folder / source).run(launches)


@pytest.mark.parametrize("tokens", [1, 8, 9, 40])
def test_gated_delta_rule_through_its_contract(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    slots, n_tokens = 2, np.array([tokens, tokens // 2], np.int32)
    given = [
        cast(rng.standard_normal((slots, tokens, 5 * 128)), "bf16"),
        *(cast(rng.standard_normal((slots, tokens, 3)), "bf16") for _ in range(2)),
        *(cast(rng.uniform(-1, 1, 3), "bf16") for _ in range(2)),
        rng.standard_normal((slots, 3, 128, 128)).astype(np.float32),
        n_tokens,
        n_tokens // 2 if tokens <= 8 else n_tokens,
    ]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in given]
    o, S = GATED_DELTA_RULE.reference(*wide, **HEADS)
    found = {"o": poisoned((slots, tokens, 3 * 128), "bf16")}
    call = call_of(GATED_DELTA_RULE, given, HEADS, found)
    run_on_shim(GATED_DELTA_RULE, call)
    live = np.arange(tokens) < n_tokens[:, None]
    assert relative_rms(found["o"][live], o[live]) <= TOLERANCE["bf16"]
    assert relative_rms(given[5], S) <= TOLERANCE["state"]


def test_causal_conv1d_through_its_contract() -> None:
    rng = np.random.default_rng(0)
    n_commit = np.array([5, 2], np.int32)
    given = [cast(rng.standard_normal(s), "bf16") for s in ((2, 5, 64), (64, 1, 4), (2, 3, 64))] + [n_commit]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in given]
    y, state = CAUSAL_CONV1D.reference(*wide)
    found = {"y": poisoned((2, 5, 64), "bf16")}
    run_on_shim(CAUSAL_CONV1D, call_of(CAUSAL_CONV1D, given, {}, found))
    assert relative_rms(found["y"], y) <= TOLERANCE["bf16"]
    assert relative_rms(given[2], state) == 0


@pytest.mark.parametrize("shared_limit", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("tokens", [9, 64, 1000, 5000])
def test_workspace_is_enough_on_every_gpu(tokens: int, shared_limit: int) -> None:
    sizes = {
        "B": 2,
        "T": tokens,
        "C": 80 * 128,
        "num_k_heads": 16,
        "num_v_heads": 48,
        "head_k_dim": 128,
        "head_v_dim": 128,
    }
    dtypes = {"qkv": "bf16", "A_log": "f32", "dt_bias": "f32"}
    largest = delta.workspace_bytes(Call(sizes, dtypes))
    for smaller in (9, tokens // 2 + 9, tokens):
        if smaller <= tokens:
            shape = delta._shape(Call(sizes | {"T": smaller}, dtypes))
            assert delta.chunking(shape, shared_limit).workspace_bytes() <= largest


def test_every_op_has_a_kernel_in_its_folder() -> None:
    for spec in OPS:
        kernel = kernel_of(spec)
        assert kernel.sources and all((kernel.folder / source).is_file() for source in kernel.sources)


@pytest.mark.parametrize("tokens", [1, 20])
def test_gated_attention_through_its_contract(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    heads, capacity, past = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64}, 96, np.array([70, 3], np.int32)
    n_tokens = np.array([tokens, tokens // 2], np.int32)
    widths = [("q", 6), ("k", 2), ("v", 2), ("gate", 6)]
    given = [cast(rng.standard_normal((2, tokens, h * 64)), "bf16") for _, h in widths]
    given += [cast(rng.standard_normal((2, 2, capacity, 64)), "bf16") for _ in range(2)] + [past, n_tokens]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in given]
    o, k_cache, v_cache = GATED_ATTENTION.reference(*wide, **heads)
    found = {"o": poisoned((2, tokens, 6 * 64), "bf16")}
    call = call_of(GATED_ATTENTION, given, heads, found)
    run_on_shim(GATED_ATTENTION, call)
    live = np.arange(tokens) < n_tokens[:, None]
    assert relative_rms(found["o"][live], o[live]) <= TOLERANCE["bf16"]
    assert relative_rms(given[4], k_cache) == relative_rms(given[5], v_cache) == 0


@pytest.mark.parametrize("slots", [1, 8])
def test_attention_workspace_is_enough_for_fewer_tokens(slots: int) -> None:
    sizes = {"B": slots, "capacity": 4096, "num_heads": 24, "num_kv_heads": 4, "head_dim": 256}
    bounds = [attention.workspace_bytes(Call(sizes | {"T": tokens}, {"q": "bf16"})) for tokens in range(1, 80)]
    shapes = [attention._shape(Call(sizes | {"T": tokens}, {"q": "bf16"})) for tokens in range(1, 80)]
    assert bounds == sorted(bounds)
    assert all(attention.plan(shape).workspace_bytes() <= bound for shape, bound in zip(shapes, bounds, strict=True))


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("tokens", [5, 40])
def test_fp8_block_linear_through_its_contract(tokens: int, quantize: int, capability: int) -> None:
    rng = np.random.default_rng(0)
    given = [
        cast(rng.standard_normal((2, tokens, 192)), "bf16"),
        rng.standard_normal((200, 192)).astype(ml_dtypes.float8_e4m3fn),
        cast(rng.uniform(0.5, 2, (2, 2)), "bf16"),
    ]
    attributes = {"quantize_activations": quantize}
    (y,) = FP8_BLOCK_LINEAR.reference(*(a.astype(np.float64) for a in given), **attributes)
    found = {"y": poisoned((2, tokens, 200), "bf16")}
    call = replace(call_of(FP8_BLOCK_LINEAR, given, attributes, found), capability=capability, multiprocessors=2)
    run_on_shim(FP8_BLOCK_LINEAR, call)
    assert relative_rms(found["y"], y) <= TOLERANCE["bf16"]
    exact = relative_rms(y, FP8_BLOCK_LINEAR.reference(*(a.astype(np.float64) for a in given))[0])
    assert (exact > 0.01) == bool(quantize)  # the two contracts are told apart


@pytest.mark.parametrize("quantize", [0, 1])
def test_linear_workspace_is_enough_for_fewer_tokens(quantize: int) -> None:
    sizes = {"B": 1, "N": 5120, "K": 17408, "quantize_activations": quantize}
    dtypes = {"x": "bf16", "weight_scale_inv": "bf16"}
    bounds = [
        kernel_of(FP8_BLOCK_LINEAR).workspace_bytes(Call(sizes | {"T": tokens}, dtypes))
        for tokens in (1, 64, 65, 300, 2048)
    ]
    assert bounds == sorted(bounds) and bounds[0] == bounds[0] * quantize
    at = {"workspace": 0, **dict.fromkeys(("x", "weight", "weight_scale_inv", "y"), 0)}
    for tokens, bound in ((65, bounds[2]), (300, bounds[3])):
        for capability in (89, 90):
            call = Call(sizes | {"T": tokens}, dtypes, at, capability=capability, multiprocessors=132)
            kernel = tiles.w8a8_kernel(capability) if quantize else tiles.W8A16
            assert sum(tiles.workspace(shape_of(call), kernel).values()) <= bound


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("tokens", [5, 40])
def test_fp8_block_gate_up_through_its_contract(tokens: int, quantize: int, capability: int) -> None:
    """A launch of both products, and from 65 tokens on the tile kernel and a product: 80 rows of 203, and 10."""
    rng = np.random.default_rng(0)
    given = [cast(rng.standard_normal((2, tokens, 192)), "bf16")]
    for _ in range(2):
        given += [rng.standard_normal((203, 192)).astype(ml_dtypes.float8_e4m3fn)]
        given += [cast(rng.uniform(0.05, 0.2, (2, 2)), "bf16")]
    attributes = {"quantize_activations": quantize}
    (y,) = FP8_BLOCK_GATE_UP.reference(*(a.astype(np.float64) for a in given), **attributes)
    found = {"y": poisoned((2, tokens, 203), "bf16")}
    call = call_of(FP8_BLOCK_GATE_UP, given, attributes, found)
    call = replace(call, capability=capability, multiprocessors=2)
    run_on_shim(FP8_BLOCK_GATE_UP, call)
    apart = tokens > 32 or quantize  # the gate and the other product are rounded before their own product is
    assert relative_rms(found["y"], y) <= (1.5 if apart else 1) * TOLERANCE["bf16"]


@pytest.mark.parametrize("spec", [ATTENTION_PROJECTIONS, DELTA_NET_PROJECTIONS], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("tokens", "quantize", "capability"), [(5, 0, 89), (40, 0, 89), (40, 1, 89), (40, 1, 90)])
def test_projections_through_their_contracts(spec: OpSpec, tokens: int, quantize: int, capability: int) -> None:
    """Weights of very different size, in one launch or, from 65 tokens on, one each."""
    rng = np.random.default_rng(tokens)
    sizes = iter((203, 130, 16) if spec is ATTENTION_PROJECTIONS else (203, 130, 6, 7))
    given = [cast(rng.standard_normal((2, tokens, 192)), "bf16")]
    for tensor in spec.inputs[1:]:
        if tensor.dtype == FP8:
            given.append(rng.standard_normal((next(sizes), 192)).astype(ml_dtypes.float8_e4m3fn))
        elif tensor.name.endswith("scale_inv"):
            given.append(cast(rng.uniform(0.05, 0.2, (-(-given[-1].shape[0] // 128), 2)), "bf16"))
        else:
            given.append(cast(rng.standard_normal((next(sizes), 192)), "bf16"))
    attributes = {"quantize_activations": quantize}
    expected = spec.reference(*(a.astype(np.float64) for a in given), **attributes)
    found = {t.name: poisoned(y.shape, "bf16") for t, y in zip(spec.outputs, expected, strict=True)}
    call = replace(call_of(spec, given, attributes, found), capability=capability, multiprocessors=2)
    run_on_shim(spec, call)
    for y, right in zip(found.values(), expected, strict=True):
        assert relative_rms(y, right) <= TOLERANCE["bf16"]


def test_lm_head_through_its_contract() -> None:
    rng = np.random.default_rng(0)
    given = [cast(rng.standard_normal(s), "bf16") for s in ((2, 3, 64), (300, 64))]
    (logits,) = LM_HEAD.reference(*(a.astype(np.float64) for a in given))
    found = {"logits": np.full((2, 3, 300), np.nan, np.float32)}
    run_on_shim(LM_HEAD, call_of(LM_HEAD, given, {}, found))
    assert relative_rms(found["logits"], logits) <= TOLERANCE["f32"]


def test_qk_norm_rope_through_its_contract() -> None:
    rng = np.random.default_rng(0)
    sizes = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64, "epsilon": 1e-6}
    shapes = ((2, 5, 12 * 64), (2, 5, 2 * 64), (64,), (64,), (2, 5, 8), (2, 5, 8))
    given = [cast(rng.standard_normal(s), "bf16") for s in shapes]
    expected = QK_NORM_ROPE.reference(*(a.astype(np.float64) for a in given), **sizes)
    found = {n: poisoned((2, 5, h * 64), "bf16") for n, h in (("q", 6), ("k_out", 2), ("gate", 6))}
    run_on_shim(QK_NORM_ROPE, call_of(QK_NORM_ROPE, given, sizes, found))
    errors = [relative_rms(mine, right) for mine, right in zip(found.values(), expected, strict=True)]
    assert max(errors) <= TOLERANCE["bf16"] and errors[2] == 0


def test_gated_rms_norm_through_its_contract() -> None:
    rng = np.random.default_rng(0)
    given = [cast(rng.standard_normal(s), "bf16") for s in ((2, 3, 384), (128,), (2, 3, 384))]
    (y,) = GATED_RMS_NORM.reference(*(a.astype(np.float64) for a in given), epsilon=1e-6)
    found = {"y": poisoned((2, 3, 384), "bf16")}
    run_on_shim(GATED_RMS_NORM, call_of(GATED_RMS_NORM, given, {"epsilon": 1e-6}, found))
    assert relative_rms(found["y"], y) <= TOLERANCE["bf16"]


def test_a_state_that_was_copied_is_refused() -> None:
    inputs = list(range(256, 256 * 9, 256))
    at = named_addresses(GATED_DELTA_RULE, inputs, [4096, inputs[5]])
    assert (at["S"], at["o"], at["qkv"]) == (inputs[5], 4096, 256)
    with pytest.raises(BuildError, match=r"GatedDeltaRule.S has different buffers"):
        named_addresses(GATED_DELTA_RULE, inputs, [4096, 8192])


def test_serialized_fields() -> None:
    fields = {**HEADS, "contract": 1}
    assert trt_plugin._attributes(GATED_DELTA_RULE, fields) == HEADS
    with pytest.raises(BuildError, match="of contract 2"):
        trt_plugin._attributes(GATED_DELTA_RULE, fields | {"contract": 2})
    with pytest.raises(BuildError, match="without num_v_heads"):
        trt_plugin._attributes(GATED_DELTA_RULE, {k: v for k, v in HEADS.items() if k != "num_v_heads"})
