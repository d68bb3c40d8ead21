"""The int4 linear's bodies against its float64 reference, and that against numpy alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from deltart.calib.bodies import FastBodies
from deltart.export import ops
from deltart.export.lower.functions import ORT, PORTABLE, Lowering, composite_functions
from deltart.plugins.int4_linear.op import INT4_GROUP_LINEAR
from deltart.plugins.int4_linear.reference import dequantize, packed, values
from deltart.plugins.spec import DOMAIN
from deltart.plugins.tolerance import TOLERANCE, relative_rms

# (N, K, group): several shapes and groups are one function of one model.
SHAPES = ((1, 32, 32), (48, 256, 128), (130, 96, 16), (257, 512, 256), (64, 192, 64))


def test_words_of_the_file_are_these_bytes() -> None:
    """Eight values of one int32, the first lowest, by shifts alone."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-8, 8, (3, 64))
    words = sum((integers[:, place::8] + 8) << 4 * place for place in range(8)).astype(np.uint32)
    groups = words.view(np.uint8).reshape(3, 2, 16)
    assert np.array_equal(values(groups), integers) and np.array_equal(packed(integers, 32), groups)


@pytest.mark.parametrize("bodies", [PORTABLE, ORT], ids=["portable", "ort"])
def test_bodies_equal_the_reference(bodies: Lowering) -> None:
    rng = np.random.default_rng(1)
    nodes, initializers, inputs, outputs, given, expected = [], [], [], [], {}, {}
    for number, (n, k, group) in enumerate(SHAPES):
        weight = packed(rng.integers(-8, 8, (n, k)), group)
        scale = rng.uniform(0.01, 0.1, (n, k // group)).astype(ml_dtypes.bfloat16)
        x = rng.standard_normal((2, 5, k)).astype(np.float32)
        names = [f"{name}{number}" for name in ("x", "weight", "scale", "y")]
        attributes = {"K": k, "N": n, "group_size": group}
        nodes.append(onnx.helper.make_node("Int4GroupLinear", names[:3], names[3:], domain=DOMAIN, **attributes))
        initializers.append(onnx.numpy_helper.from_array(weight, names[1]))
        initializers.append(onnx.numpy_helper.from_array(scale, names[2]))
        inputs.append(onnx.helper.make_tensor_value_info(names[0], onnx.TensorProto.FLOAT, ["B", "T", k]))
        outputs.append(onnx.helper.make_tensor_value_info(names[3], onnx.TensorProto.FLOAT, None))
        given[names[0]] = x
        wide = scale.astype(np.float64)
        (expected[names[3]],) = INT4_GROUP_LINEAR.reference(x.astype(np.float64), weight, wide, **attributes)
        direct = x.astype(np.float64) @ (values(weight) * np.repeat(wide, group, 1)).T
        assert relative_rms(expected[names[3]], direct) < 1e-12
    functions = composite_functions(nodes, bodies)
    assert len(functions) == 1
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in (("", 24), (DOMAIN, 1), ("com.microsoft", 1))]
    graph = onnx.helper.make_graph(nodes, "linears", inputs, outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, found in zip(expected, session.run(list(expected), given), strict=True):
        assert relative_rms(found, expected[name]) <= TOLERANCE["f32"]


def test_calibration_body_equals_the_reference() -> None:
    rng = np.random.default_rng(2)
    weight = torch.from_numpy(packed(rng.integers(-8, 8, (24, 64)), 32))
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, (24, 2)).astype(np.float32))
    x = torch.from_numpy(rng.standard_normal((1, 3, 64)).astype(np.float32))
    expected = ops.int4_group_linear(x, weight, scale, 64, 24, 32)
    with FastBodies():
        found = ops.int4_group_linear(x, weight, scale, 64, 24, 32)
    assert relative_rms(found.numpy(), expected.numpy()) <= TOLERANCE["f32"]


def test_sizes_that_do_not_fit_are_refused() -> None:
    weight, scale = np.zeros((4, 2, 16), np.uint8), np.ones((4, 2))
    with pytest.raises(ValueError, match="expected those of a weight"):
        INT4_GROUP_LINEAR.reference(np.zeros((1, 1, 96)), weight, scale, K=96, N=4, group_size=32)
    assert dequantize(weight, scale).tolist() == [[-8.0] * 64] * 4
