"""The int4 experts' body against their float64 reference, and that against numpy alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deltart.export.lower.functions import ORT, PORTABLE, Lowering, composite_functions
from deltart.plugins.int4_experts.op import INT4_MOE_EXPERTS
from deltart.plugins.int4_linear.reference import packed
from deltart.plugins.spec import DOMAIN
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SLOTS = (2, 0, 5, 3)  # the experts of a run, in the order of the file; experts 1 and 4 are in another one
EXPERTS, CHOSEN = 6, 3


def made(hidden: int, width: int, group: int, tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Inputs of a call of two rows, the second one token short, and its attributes."""
    rng = np.random.default_rng(hidden + tokens)
    values = rng.integers(-8, 8, (len(SLOTS), 3, hidden * width))
    given = {
        "x": rng.standard_normal((2, tokens, hidden)).astype(np.float32),
        "logits": rng.standard_normal((2, tokens, EXPERTS)).astype(np.float32),
        "n_tokens": np.array([tokens, tokens - 1], np.int32),
        "experts": packed(values.reshape(len(SLOTS) * 3, -1), group).reshape(len(SLOTS), 3, -1),
        "experts_scale": rng.uniform(0.01, 0.03, (len(SLOTS), 3, hidden * width // group)).astype(ml_dtypes.bfloat16),
        "slot_expert": np.array(SLOTS, np.int32),
    }
    sizes = {"num_experts_per_tok": CHOSEN, "hidden_size": hidden, "intermediate_size": width, "group_size": group}
    return given, sizes


def expected(given: dict[str, np.ndarray], sizes: dict[str, int]) -> np.ndarray:
    wide = (a if a.dtype.kind in "iu" else a.astype(np.float64) for a in given.values())
    return INT4_MOE_EXPERTS.reference(*wide, **sizes)[0]


def by_hand(given: dict[str, np.ndarray], sizes: dict[str, int]) -> np.ndarray:
    """A token, a choice and a nibble at a time."""
    hidden, width, group = (sizes[name] for name in ("hidden_size", "intermediate_size", "group_size"))
    y = np.zeros(given["x"].shape)
    for b, count in enumerate(given["n_tokens"]):
        for t in range(count):
            logits = given["logits"][b, t].astype(np.float64)
            chosen = np.argsort(-logits, kind="stable")[:CHOSEN]
            shares = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
            for number, share in zip(chosen, shares, strict=True):
                if number not in SLOTS:
                    continue
                slot = SLOTS.index(number)
                nibbles = np.stack([given["experts"][slot] & 15, given["experts"][slot] >> 4], -1).reshape(3, -1)
                scale = np.repeat(given["experts_scale"][slot].astype(np.float64), group, -1)
                down, gate, up = (nibbles.astype(np.float64) - 8) * scale
                x = given["x"][b, t].astype(np.float64)
                opened = gate.reshape(width, hidden) @ x
                inner = opened / (1 + np.exp(-opened)) * (up.reshape(width, hidden) @ x)
                y[b, t] += share * (down.reshape(hidden, width) @ inner)
    return y


def run(given: dict[str, np.ndarray], sizes: dict[str, int], bodies: Lowering) -> np.ndarray:
    inputs: list[Any] = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
        if not name.startswith("experts")
    ]
    weights = [onnx.numpy_helper.from_array(given[name], name) for name in ("experts", "experts_scale")]
    node = onnx.helper.make_node(INT4_MOE_EXPERTS.name, list(given), ["y"], domain=DOMAIN, **sizes)
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, given["x"].shape)]
    graph = onnx.helper.make_graph([node], "experts", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in (("", 24), (DOMAIN, 1))]
    functions = composite_functions([node], bodies)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {name: array for name, array in given.items() if not name.startswith("experts")})[0]


def test_the_reference_is_what_it_says() -> None:
    given, sizes = made(64, 32, 32, 3)
    assert relative_rms(expected(given, sizes), by_hand(given, sizes)) < 1e-12


@pytest.mark.parametrize("bodies", [PORTABLE, ORT], ids=["portable", "ort"])
@pytest.mark.parametrize("hidden, width, group", [(64, 32, 32), (256, 128, 128), (96, 64, 16), (128, 96, 32)])
def test_bodies_equal_the_reference(hidden: int, width: int, group: int, bodies: Lowering) -> None:
    for tokens in (1, 9):
        given, sizes = made(hidden, width, group, tokens)
        assert relative_rms(run(given, sizes, bodies), expected(given, sizes)) <= TOLERANCE["f32"]
