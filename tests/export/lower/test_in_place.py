"""ONNX Runtime's gated delta rule with S read from and written to one buffer, drafts rejected at each count."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deltart.export.lower.functions import ORT, composite_functions
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.spec import DOMAIN
from deltart.plugins.tolerance import relative_rms

SIZES = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}
SHAPE = {"key_heads": 1, "value_heads": 3, "dtype": "f32", "A_log_dtype": "f32", "dt_bias_dtype": "f32"}
NAMES = [t.name for t in GATED_DELTA_RULE.inputs]


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    node = onnx.helper.make_node(GATED_DELTA_RULE.name, NAMES, ["o", "S_out"], domain=DOMAIN, **SIZES)
    kinds = {"n_tokens": onnx.TensorProto.INT32, "n_commit": onnx.TensorProto.INT32}
    taken = [
        onnx.helper.make_tensor_value_info(t.name, kinds.get(t.name, onnx.TensorProto.FLOAT), [None] * len(t.axes))
        for t in GATED_DELTA_RULE.inputs
    ]
    made = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("o", "S_out")]
    opsets = [onnx.helper.make_opsetid(domain, n) for domain, n in (("", 24), (DOMAIN, 1), ("com.microsoft", 1))]
    graph, bodies = onnx.helper.make_graph([node], "one_op", taken, made), composite_functions([node], ORT)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def call(session: ort.InferenceSession, given: dict[str, np.ndarray], in_place: bool) -> tuple[np.ndarray, np.ndarray]:
    """o and S after one call; S in one buffer, or in two."""
    S = ort.OrtValue.ortvalue_from_numpy(given["S"].copy())
    after = S if in_place else ort.OrtValue.ortvalue_from_numpy(np.full_like(given["S"], np.nan))
    io = session.io_binding()
    for name in NAMES:
        if name != "S":
            io.bind_cpu_input(name, given[name])
    io.bind_ortvalue_input("S", S)
    io.bind_output("o")
    io.bind_ortvalue_output("S_out", after)
    session.run_with_iobinding(io)
    return io.get_outputs()[0].numpy().copy(), after.numpy().copy()


@pytest.mark.parametrize("commits", [(n, 5 - n) for n in range(6)])
def test_one_buffer_gives_what_two_give(session: ort.InferenceSession, commits: tuple[int, int]) -> None:
    shape = Shape(slots=2, tokens=5, **SHAPE)
    given = inputs.make(shape, 0, 0.9, n_commit=np.array(commits))
    (o, S), (other_o, other_S) = (call(session, given, in_place) for in_place in (True, False))
    expected_o, expected_S = inputs.expected(shape, given)
    np.testing.assert_array_equal(o, other_o)
    np.testing.assert_array_equal(S, other_S)
    assert relative_rms(o, expected_o) <= 2e-6 and relative_rms(S, expected_S) <= 2e-6


@pytest.mark.parametrize("commit", range(6))
def test_the_state_is_bit_for_bit_that_of_the_committed_tokens(session: ort.InferenceSession, commit: int) -> None:
    given = inputs.make(Shape(tokens=5, **SHAPE), 1, n_commit=np.array([commit]))
    kept = {name: given[name][:, :commit] if name in ("qkv", "a", "b") else given[name] for name in given}
    kept |= {name: np.array([commit], np.int32) for name in ("n_tokens", "n_commit")}
    kept |= {name: np.ascontiguousarray(kept[name]) for name in ("qkv", "a", "b")}
    S = call(session, given, in_place=True)[1]
    np.testing.assert_array_equal(S, call(session, kept, in_place=True)[1] if commit else given["S"])
