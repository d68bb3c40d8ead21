"""A new op is a folder and its row in the registry: a toy one in a copy of the source is traced, lowered and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

OP = '''
import numpy as np

from deltart.plugins.spec import ACT, OpSpec, TensorSpec


def running_sum(x, state, scale):
    """y[t] = scale * (state + x[0] + ... + x[t])."""
    total = state[:, None] + np.cumsum(x, axis=1)
    return scale * total, total[:, -1]


RUNNING_SUM = OpSpec(
    name="RunningSum",
    doc="Sums over the tokens so far.",
    inputs=(TensorSpec("x", ACT, ("B", "T", "C")), TensorSpec("state", ACT, ("B", "C"))),
    outputs=(TensorSpec("y", ACT, ("B", "T", "C")), TensorSpec("state_out", ACT, ("B", "C"), alias="state")),
    attributes={"scale": float},
    reference=running_sum,
)
'''

BODIES = '''
from deltart.plugins.bodies import Bodies, integers


def portable(attributes):
    return f"""
RunningSum <scale> (x, state) => (y, state_out) {{
  tokens = {integers(1)}
  axis = Constant <value_int: int = 1> ()
  before = Unsqueeze (state, tokens)
  sums = CumSum (x, axis)
  total = Add (sums, before)
  scale = Constant <value_float: float = {attributes["scale"]!r}> ()
  y = Mul (total, scale)
  last = {integers(-1)}
  end = Gather <axis = 1> (total, last)
  state_out = Squeeze (end, tokens)
}}
"""


BODIES = {"RunningSum": Bodies(portable, ort_in_place=True)}
'''

SCRIPT = """
import numpy as np
import onnxruntime
import torch
from torch import nn

from deltart.export import ops
from deltart.export.assemble import Tracer, assemble, lower
from deltart.export.bound import BoundBlock, BoundGraph, BoundModel
from deltart.export.graph import Block, ModelGraph, State, activation, values
from deltart.export.lower import tensorrt
from deltart.export.lower.functions import ORT, PORTABLE
from deltart.export.states import writers
from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.spec import ACT


SPEC = MODEL_OPS[-1]


class Toy(nn.Module):
    def forward(self, x, state):
        return ops.running_sum(x, state, 0.5)


block = Block("toy", lambda _: Toy(), {}, ("x",), ("y",), (State("toy.sum", ACT, ("B", 3)),))
graph = ModelGraph("toy", values(activation("x", "B", "T", 3), activation("y", "B", "T", 3)), ("x",), ("y",), (block,))
bound = BoundModel(None, {}, torch.float32, False, False, (BoundGraph(graph, (BoundBlock(block, Toy()),)),))
tracer = Tracer(bound)
model, _ = assemble(graph, tracer)
assert writers(block, tracer.traced(graph, block).function) == {"toy.sum": SPEC}
rng = np.random.default_rng(0)
given = {"x": rng.standard_normal((2, 7, 3)).astype("f"), "toy.sum": rng.standard_normal((2, 3)).astype("f")}
expected = SPEC.reference(*(a.astype(float) for a in given.values()), scale=0.5)
for bodies in (PORTABLE, ORT):
    lowered = lower(model, bodies).SerializeToString()
    session = onnxruntime.InferenceSession(lowered, providers=["CPUExecutionProvider"])
    for found, right in zip(session.run(["y", "toy.sum.next"], given), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
assert [node.op_type for node in tensorrt.lower(model).graph.node] == ["RunningSum"]
print("traced, lowered, run")
"""


def test_a_toy_op_in_a_folder_and_a_row(tmp_path: Path) -> None:
    for package in ("deltart", "export", "plugins", "runtime", "calib"):
        shutil.copytree(
            ROOT / package, tmp_path / package, symlinks=True, ignore=shutil.ignore_patterns("build", "*.cu*")
        )
    folder = tmp_path / "plugins" / "running_sum"
    folder.mkdir()
    for name, text in (("__init__", ""), ("op", OP), ("bodies", BODIES)):
        (folder / f"{name}.py").write_text(text)
    registry = tmp_path / "plugins" / "registry.py"
    text = registry.read_text()
    row, end = "MODEL_OPS: tuple[OpSpec, ...] = (", text.index(")", text.index("MODEL_OPS: tuple[OpSpec, ...] = ("))
    assert row in text
    with_row = text[:end].rstrip().rstrip(",") + ", RUNNING_SUM" + text[end:]
    registry.write_text("from deltart.plugins.running_sum.op import RUNNING_SUM\n" + with_row)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "traced, lowered, run\n", done.stderr
