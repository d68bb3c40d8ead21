"""Every lowered body against its op's float64 reference, run by ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deltart.export.lower.functions import ORT, PORTABLE, Lowering, composite_functions
from deltart.plugins.registry import OPS
from deltart.plugins.spec import DOMAIN, OpSpec

LOWERINGS = {"portable": PORTABLE, "ort": ORT}
GDN_SIZES = {"num_k_heads": 2, "num_v_heads": 6, "head_k_dim": 128, "head_v_dim": 128}
ATTENTION_SIZES = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64}
BY_NAME = {spec.name: spec for spec in OPS}


def run_body(spec: OpSpec, bodies: Lowering, arrays: list[np.ndarray], attributes: dict) -> list[np.ndarray]:
    results = [f"{t.name}_out" for t in spec.outputs]
    node = onnx.helper.make_node(spec.name, [t.name for t in spec.inputs], results, domain=DOMAIN, **attributes)
    inputs = [
        onnx.helper.make_tensor_value_info(t.name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for t, a in zip(spec.inputs, arrays, strict=True)
    ]
    outputs = [onnx.helper.make_tensor_value_info(r, onnx.TensorProto.FLOAT, None) for r in results]
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid(DOMAIN, 1)]
    opsets.append(onnx.helper.make_opsetid("com.microsoft", 1))
    graph = onnx.helper.make_graph([node], "one_op", inputs, outputs)
    functions = composite_functions([node], bodies)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    io = session.io_binding()
    for name, array in zip([t.name for t in spec.inputs], arrays, strict=True):
        io.bind_ortvalue_input(name, to_ortvalue(array))
    for result in results:
        io.bind_output(result)
    session.run_with_iobinding(io)
    return [value.numpy() for value in io.get_outputs()]


def to_ortvalue(array: np.ndarray) -> ort.OrtValue:
    bits = {ml_dtypes.bfloat16: np.uint16, ml_dtypes.float8_e4m3fn: np.uint8}.get(array.dtype.type)
    if bits is None:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(bits), kind)


def check(
    spec: OpSpec, bodies: Lowering, arrays: list[np.ndarray], attributes: dict, *defined: np.ndarray | None
) -> None:
    """Compare each output where `defined` says it is (padding tokens and unused cache rows are not)."""
    wide = [a.astype(np.float64) if a.dtype.kind not in "iu" else a for a in arrays]
    expected = spec.reference(*wide, **attributes)
    for position, (got, want) in enumerate(zip(run_body(spec, bodies, arrays, attributes), expected, strict=True)):
        assert got.shape == want.shape
        if position < len(defined) and (where := defined[position]) is not None:
            got, want = got[where], want[where]
        assert np.isfinite(got).all()
        rms = np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2))
        assert rms <= 2e-6, f"{spec.outputs[position].name}: relative RMS {rms:.2e}"


def ragged(rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """n_tokens [B], the first row full, and which tokens are real [B, T]."""
    n_tokens = rng.integers(0, length + 1, batch).astype(np.int32)
    n_tokens[0] = length
    return n_tokens, np.arange(length) < n_tokens[:, None]


@pytest.mark.parametrize("target", LOWERINGS)
@pytest.mark.parametrize("drafts", ["none", "some", "all"])
@pytest.mark.parametrize("length", [1, 2, 5, 63, 65])
def test_gated_delta_rule(target: str, drafts: str, length: int) -> None:
    rng = np.random.default_rng(length)
    batch, heads = 3, GDN_SIZES["num_v_heads"]
    n_tokens, real = ragged(rng, batch, length)
    qkv = rng.standard_normal((batch, length, (2 * 2 + heads) * 128)).astype(np.float32)
    keys = qkv[..., 256:512]
    keys[:] = 0.99 * keys[:, :1] + 0.1 * keys  # nearly parallel keys
    a, b = (rng.standard_normal((batch, length, heads)).astype(np.float32) for _ in range(2))
    A_log = rng.uniform(-1, 2, heads).astype(ml_dtypes.bfloat16)
    dt_bias = rng.standard_normal(heads).astype(np.float32)
    S = rng.standard_normal((batch, heads, 128, 128)).astype(np.float32)
    n_commit = {"none": n_tokens, "some": rng.integers(0, n_tokens + 1).astype(np.int32), "all": 0 * n_tokens}[drafts]
    arrays = [qkv, a, b, A_log, dt_bias, S, n_tokens, n_commit]
    check(BY_NAME["GatedDeltaRule"], LOWERINGS[target], arrays, GDN_SIZES, real)


@pytest.mark.parametrize("target", LOWERINGS)
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_causal_conv1d(target: str, length: int) -> None:
    rng = np.random.default_rng(length)
    n_commit = rng.integers(0, length + 1, 4).astype(np.int32)
    x, state = (rng.standard_normal((4, t, 40)).astype(np.float32) for t in (length, 3))
    weight = rng.standard_normal((40, 1, 4)).astype(ml_dtypes.bfloat16)
    check(BY_NAME["CausalConv1d"], LOWERINGS[target], [x, weight, state, n_commit], {})


@pytest.mark.parametrize("target", LOWERINGS)
def test_gated_rms_norm(target: str) -> None:
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((2, 3, 512)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal(128).astype(np.float32)
    check(BY_NAME["GatedRMSNorm"], LOWERINGS[target], [x, weight, z], {"epsilon": 1e-6})


@pytest.mark.parametrize("target", LOWERINGS)
@pytest.mark.parametrize(
    ("length", "past"), [(1, (0, 0)), (1, (3, 7)), (5, (0, 0)), (5, (3, 7)), (5, (0, 6)), (4, (9,))]
)
def test_gated_attention(target: str, length: int, past: tuple[int, ...]) -> None:
    rng = np.random.default_rng(length)
    n_tokens, real = ragged(rng, len(past), length)
    q, gate = (rng.standard_normal((len(past), length, 6 * 64)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((len(past), length, 2 * 64)).astype(np.float32) for _ in range(2))
    caches = [rng.standard_normal((len(past), 2, 16, 64)).astype(np.float32) for _ in range(2)]
    arrays = [q, k, v, gate, *caches, np.array(past, np.int32), n_tokens]
    used = np.arange(16) < (np.array(past) + n_tokens)[:, None]  # [B, capacity]
    used = np.broadcast_to(used[:, None, :], caches[0].shape[:3])
    check(BY_NAME["GatedAttention"], LOWERINGS[target], arrays, ATTENTION_SIZES, real, used, used)


@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(128, 128), (300, 200), (64, 384)])
def test_fp8_block_linear(n: int, k: int, scale_dtype: type, quantize: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    x[0, 1] = 0
    x[1, 0] *= 1e-4
    weight = rng.standard_normal((n, k)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))).astype(scale_dtype)
    check(BY_NAME["Fp8BlockLinear"], PORTABLE, [x, weight, scale], {"quantize_activations": quantize})


@pytest.mark.parametrize("quantize", [0, 1])
def test_fp8_block_gate_up(quantize: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 200)).astype(np.float32)
    pairs = [
        (rng.standard_normal((300, 200)).astype(ml_dtypes.float8_e4m3fn), rng.uniform(0.01, 0.1, (3, 2)))
        for _ in range(2)
    ]
    arrays = [a for weight, scale in pairs for a in (weight, scale.astype(ml_dtypes.bfloat16))]
    check(BY_NAME["Fp8BlockGateUp"], PORTABLE, [x, *arrays], {"quantize_activations": quantize})


def routed(rng: np.random.Generator, length: int, hidden: int, experts: int) -> list[np.ndarray]:
    """x, logits and n_tokens of three rows; where there is no token x and logits are NaN."""
    n_tokens, real = ragged(rng, 3, length)
    x = rng.standard_normal((3, length, hidden)).astype(np.float32)
    logits = rng.standard_normal((3, length, experts)).astype(np.float32)
    logits[real, 0] = logits[real].max(-1)  # expert 0 is every token's, by a tie
    x[~real] = logits[~real] = np.nan
    return [x, logits, n_tokens]


def routing(chosen: int, hidden: int, width: int) -> dict:
    return {"num_experts_per_tok": chosen, "hidden_size": hidden, "intermediate_size": width}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("experts", "chosen", "length"), [(8, 2, 5), (7, 7, 1), (5, 1, 9)])
def test_moe_experts(experts: int, chosen: int, length: int, dtype: type) -> None:
    rng = np.random.default_rng(experts)
    gate_up = rng.standard_normal((experts, 2 * 48, 80)).astype(dtype)
    down = rng.standard_normal((experts, 80, 48)).astype(dtype)
    arrays = [*routed(rng, length, 80, experts), gate_up, down]
    check(BY_NAME["MoeExperts"], PORTABLE, arrays, routing(chosen, 80, 48))


@pytest.mark.parametrize("present", [7, 5], ids=["all", "some"])
@pytest.mark.parametrize(("hidden", "width"), [(256, 128), (192, 200)])
def test_fp8_moe_experts(hidden: int, width: int, present: int) -> None:
    rng = np.random.default_rng(hidden)
    slots = rng.permutation(7)[:present].astype(np.int32)
    codes = rng.standard_normal((present, 3, hidden * width)).astype(ml_dtypes.float8_e4m3fn)
    blocks = -(-hidden // 128) * -(-width // 128)
    scale = rng.uniform(0.01, 0.1, (present, 3, blocks)).astype(ml_dtypes.bfloat16)
    arrays = [*routed(rng, 4, hidden, 7), codes, scale, slots]
    for quantize in (0, 1):
        attributes = {**routing(3, hidden, width), "quantize_activations": quantize}
        check(BY_NAME["Fp8MoeExperts"], PORTABLE, arrays, attributes)


def shared_expert(rng: np.random.Generator, hidden: int, width: int) -> list[np.ndarray]:
    """Gate, up and down in bfloat16."""
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    return [rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in shapes]


def test_sparse_moe() -> None:
    rng = np.random.default_rng(0)
    experts = [rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((5, 96, 80), (5, 80, 48))]
    own_gate = rng.standard_normal((1, 80)).astype(np.float32) * 0.1
    arrays = [*routed(rng, 6, 80, 5), *experts, *shared_expert(rng, 80, 24), own_gate]
    check(BY_NAME["SparseMoe"], PORTABLE, arrays, routing(2, 80, 48))


def test_fp8_sparse_moe() -> None:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((5, 3, 192 * 128)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (5, 3, 2)).astype(ml_dtypes.bfloat16)
    shared = [a for n, k in ((200, 192), (200, 192), (192, 200)) for a in stored(rng, n, k)]
    own_gate = rng.standard_normal((1, 192)).astype(ml_dtypes.bfloat16) * 0.1
    arrays = [*routed(rng, 6, 192, 5), codes, scale, rng.permutation(5).astype(np.int32), *shared, own_gate]
    for quantize in (0, 1):
        attributes = {**routing(2, 192, 128), "quantize_activations": quantize}
        check(BY_NAME["Fp8SparseMoe"], PORTABLE, arrays, attributes)


def stored(rng: np.random.Generator, n: int, k: int) -> list[np.ndarray]:
    scale = rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))).astype(ml_dtypes.bfloat16)
    return [rng.standard_normal((n, k)).astype(ml_dtypes.float8_e4m3fn), scale]


@pytest.mark.parametrize("quantize", [0, 1])
def test_projections(quantize: int) -> None:
    rng = np.random.default_rng(quantize)
    x = rng.standard_normal((2, 3, 200)).astype(np.float32)
    fp8 = [stored(rng, n, 200) for n in (300, 64, 130)]
    plain = [rng.standard_normal((5, 200)).astype(ml_dtypes.bfloat16) for _ in range(2)]
    attributes = {"quantize_activations": quantize}
    attention = [x, *(a for pair in fp8 for a in pair)]
    check(BY_NAME["AttentionProjections"], PORTABLE, attention, attributes)
    delta_net = [x, *fp8[0], *fp8[1], *plain]
    check(BY_NAME["DeltaNetProjections"], PORTABLE, delta_net, attributes)


def test_lm_head() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 64)).astype(np.float32)
    check(BY_NAME["LmHead"], PORTABLE, [x, rng.standard_normal((90, 64)).astype(ml_dtypes.bfloat16)], {})


@pytest.mark.parametrize("pairs", [8, 32])
def test_qk_norm_rope(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    q_gate, k = (rng.standard_normal((2, 3, heads * 64)).astype(np.float32) for heads in (12, 2))
    weights = [rng.standard_normal(64).astype(ml_dtypes.bfloat16) for _ in range(2)]
    tables = [rng.standard_normal((2, 3, pairs)).astype(np.float32) for _ in range(2)]
    sizes = ATTENTION_SIZES | {"epsilon": 1e-3}
    check(BY_NAME["QkNormRope"], PORTABLE, [q_gate, k, *weights, *tables], sizes)
