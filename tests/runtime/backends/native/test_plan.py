"""Native plans: where tensors lie, what is refused while they are built, and what when they are loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info

from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.errors import ArtifactError, BuildError
from deltart.manifest import TensorEntry
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.engine_manifest import bindings, load_engine, profile
from deltart.runtime.backends.native.builder.arena import Life, place
from deltart.runtime.backends.native.builder.compile import compile_plan
from deltart.runtime.backends.native.executor import NativeExecutor
from deltart.runtime.backends.native.plan import ALIGNMENT, Constant
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt.load import built_flavour

BF16, FLOAT, INT64 = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.INT64
Nano = Callable[[str], Path]


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    made = []
    for number in range(draw(st.integers(0, 24))):
        first = draw(st.integers(0, 12))
        nbytes = draw(st.integers(0, 5000))
        made.append(Life(str(number), nbytes, first, first + draw(st.integers(0, 5))))
    return made


@given(lives())
def test_what_lives_together_lies_apart(wanted: list[Life]) -> None:
    offsets, nbytes = place(wanted)
    for number, one in enumerate(wanted):
        assert offsets[one.name] % ALIGNMENT == 0 and offsets[one.name] + one.nbytes <= nbytes
        for other in wanted[:number]:
            if one.meets(other) and one.nbytes and other.nbytes:
                begins, ends = zip(*((offsets[x.name], offsets[x.name] + x.nbytes) for x in (one, other)), strict=True)
                assert max(begins) >= min(ends)
    least = max((sum(x.nbytes for x in wanted if x.first <= at <= x.last) for at in range(18)), default=0)
    assert nbytes >= least


def test_room_is_used_again() -> None:
    chain = [Life(str(step), 1024, step, step + 1) for step in range(50)]
    assert place(chain)[1] == 2 * 1024


def graph(nodes: list[onnx.NodeProto], **inputs: Any) -> bytes:
    """A model of `nodes`: x bf16 [B, T, 16] and w bf16 [8, 16] in, y bf16 [B, T, 8] out."""
    given = {"x": (BF16, ["B", "T", 16]), "w": (BF16, [8, 16])} | inputs
    values = [make_tensor_value_info(name, *kind) for name, kind in given.items()]
    out = make_tensor_value_info("y", BF16, ["B", "T", 8])
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("deltart", 1)]
    return make_model(make_graph(nodes, "g", values, [out]), opset_imports=opsets).SerializeToString()


def op(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return make_node(kind, inputs, outputs, f"the/{kind}", domain="deltart", **attributes)


DECODE = profile("decode", 2, 64, 32)


def test_a_plan_of_two_steps() -> None:
    made = compile_plan(graph([op("RmsNorm", ["x", "v"], ["n"], epsilon=1e-6), op("Linear", ["n", "w"], ["y"])],
                              v=(FLOAT, [16])), DECODE)  # fmt: skip
    assert [step.op for step in made.plan.steps] == ["RmsNorm", "Linear"] and made.ops == {"RmsNorm": 1, "Linear": 1}
    assert {name: (t.dtype, t.axes) for name, t in made.plan.tensors.items()} == {"n": ("bf16", ["B", "T", 16])}
    assert made.plan.arena_bytes == ALIGNMENT and made.plan.launches == 2


@pytest.mark.parametrize(
    ("nodes", "inputs", "message"),
    [
        ([make_node("Relu", ["x"], ["y"], "the/Relu")], {}, "node 'the/Relu' is Relu"),
        ([op("Unheard", ["x"], ["y"])], {}, "node 'the/Unheard' is deltart::Unheard"),
        ([op("Linear", ["z", "w"], ["y"])], {}, "reads 'z', which nothing before it makes"),
        ([op("Linear", ["x", "w"], ["y"])], {"w": (INT64, [8, 16])}, "reads 'w' as weight, of i64"),
        ([op("Linear", ["x", "w"], ["y"])], {"w": (FLOAT, [8, 16])}, "'the/Linear' .*stored as f32"),
        ([op("Linear", ["x", "w"], ["y"])], {"w": (BF16, [8, 24])}, "axis K is 24, expected 16"),
        (
            [op("Linear", ["x", "w"], ["y"])],
            {"x": (BF16, ["B", "T", 12]), "w": (BF16, [8, 12])},
            "'the/Linear'.*K = 12",
        ),
    ],
)
def test_a_node_that_cannot_run_is_named(nodes: list[onnx.NodeProto], inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        compile_plan(graph(nodes, **inputs), DECODE)


N, K, GROUP = 512, 1024, 32
QUANTIZED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "Fp8BlockLinear": (
        {"quantize_activations": 0},
        [("p", TensorProto.INT8, [N, K]), ("s", FLOAT, [N // 128, K // 128])],
    ),
    "Int4GroupLinear": (
        {"K": K, "N": N, "group_size": GROUP},
        [("p", TensorProto.INT8, [N, K // GROUP, GROUP // 2]), ("s", BF16, [N, K // GROUP])],
    ),
}


@pytest.mark.parametrize(
    ("phase", "slots", "linear", "changes", "joined"),
    [
        ("decode", 8, "Fp8BlockLinear", {}, "Fp8LinearNorm"),
        ("speculate", 1, "Fp8BlockLinear", {}, "Fp8LinearNorm"),
        ("decode", 9, "Fp8BlockLinear", {}, None),
        ("prefill", 1, "Fp8BlockLinear", {}, None),
        ("decode", 1, "Fp8BlockLinear", {"quantize_activations": 1}, None),
        ("decode", 8, "Int4GroupLinear", {}, "Int4LinearNorm"),
        ("speculate", 1, "Int4GroupLinear", {}, "Int4LinearNorm"),
        ("decode", 9, "Int4GroupLinear", {}, None),
        ("prefill", 1, "Int4GroupLinear", {}, None),
    ],
)
def test_a_norm_joins_the_linear_before_it_in_small_calls(
    phase: str, slots: int, linear: str, changes: dict[str, Any], joined: str | None
) -> None:
    attributes, weight = QUANTIZED[linear]
    nodes = [
        op(linear, ["a", "p", "s"], ["b"], **attributes | changes),
        op("ResidualRmsNorm", ["b", "h", "v"], ["normed", "sum"], epsilon=1e-6),
    ]
    inputs = [("a", BF16, ["B", "T", K]), *weight, ("h", BF16, ["B", "T", N]), ("v", BF16, [N])]
    values = [make_tensor_value_info(*given) for given in inputs]
    outs = [make_tensor_value_info(name, BF16, ["B", "T", N]) for name in ("normed", "sum")]
    model = make_model(make_graph(nodes, "g", values, outs))
    made = compile_plan(model.SerializeToString(), profile(phase, slots, 256, 128)).plan
    assert [step.op for step in made.steps] == ([joined] if joined else [linear, "ResidualRmsNorm"])
    assert all(not constant.array().any() for constant in made.constants.values())


E, HIDDEN, WIDTH = 4, 128, 64
ROUTED = [("x", BF16, ["B", "T", HIDDEN]), ("l", FLOAT, ["B", "T", E]), ("n", TensorProto.INT32, ["B"])]
PLAIN = [("gu", BF16, [E, 2 * WIDTH, HIDDEN]), ("d", BF16, [E, HIDDEN, WIDTH])]
PACKED = [("e", TensorProto.INT8, [E, 3, HIDDEN * WIDTH]), ("es", BF16, [E, 3, 1]), ("s", TensorProto.INT32, [E])]
SHARED = [(name, BF16, [WIDTH, HIDDEN]) for name in ("sg", "su")]
SHARED += [("sd", BF16, [HIDDEN, WIDTH]), ("gate", BF16, [1, HIDDEN])]
SHARED_PACKED = [
    one
    for name, size in (("sg", [WIDTH, HIDDEN]), ("su", [WIDTH, HIDDEN]), ("sd", [HIDDEN, WIDTH]))
    for one in ((name, TensorProto.INT8, size), (f"{name}s", BF16, [1, 1]))
] + [("gate", BF16, [1, HIDDEN])]
EXPERTS = {
    "MoeExperts": PLAIN,
    "Fp8MoeExperts": PACKED,
    "SparseMoe": PLAIN + SHARED,
    "Fp8SparseMoe": PACKED + SHARED_PACKED,
}


def sparse(experts: str, changes: dict[str, int], read_again: bool = False) -> onnx.ModelProto:
    """Experts and the norm behind them; `read_again`: y is a result too."""
    sizes = {"num_experts_per_tok": 2, "hidden_size": HIDDEN, "intermediate_size": WIDTH}
    sizes |= {"quantize_activations": 0} if experts.startswith("Fp8") else {}
    given = [*ROUTED, *EXPERTS[experts]]
    nodes = [
        op(experts, [name for name, *_ in given], ["y"], **sizes | changes),
        op("ResidualRmsNorm", ["y", "h", "v"], ["normed", "sum"], epsilon=1e-6),
    ]
    given += [("h", BF16, ["B", "T", HIDDEN]), ("v", BF16, [HIDDEN])]
    results = ["normed", "sum", *(["y"] if read_again else [])]
    outs = [make_tensor_value_info(name, BF16, ["B", "T", HIDDEN]) for name in results]
    return make_model(make_graph(nodes, "g", [make_tensor_value_info(*one) for one in given], outs))


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize(
    ("phase", "slots", "read_again", "is_joined"),
    [
        ("decode", 8, False, True),
        ("speculate", 1, False, True),
        ("decode", 9, False, False),
        ("prefill", 1, False, False),
        ("decode", 1, True, False),
    ],
)
def test_a_norm_joins_the_experts_before_it_in_small_calls(
    experts: str, phase: str, slots: int, read_again: bool, is_joined: bool
) -> None:
    model = sparse(experts, {}, read_again)
    made = compile_plan(model.SerializeToString(), profile(phase, slots, 256, 128)).plan
    assert [step.op for step in made.steps] == ([f"{experts}Norm"] if is_joined else [experts, "ResidualRmsNorm"])
    if is_joined:
        assert made.launches == 3 and made.steps[0].outputs == ["normed", "sum"]
        assert [constant.array().tolist() for constant in made.constants.values()] == [[0]]


def test_no_norm_joins_experts_that_round_activations() -> None:
    model = sparse("Fp8SparseMoe", {"quantize_activations": 1})
    made = compile_plan(model.SerializeToString(), profile("decode", 1, 256, 128)).plan
    assert [step.op for step in made.steps] == ["Fp8SparseMoe", "ResidualRmsNorm"]


def delta_rule(read_again: bool = False) -> onnx.ModelProto:
    """Convolution, gated delta rule and norm of a layer with two key heads; `read_again`: o is a result too."""
    heads = {"num_k_heads": 2, "num_v_heads": 4, "head_k_dim": 128, "head_v_dim": 64}
    tail = ["a", "b", "A_log", "dt_bias", "S", "n_tokens", "n_commit"]
    nodes = [
        op("CausalConv1d", ["x", "taps", "state", "n_commit"], ["qkv", "state_out"]),
        op("GatedDeltaRule", ["qkv", *tail], ["o", "S_out"], **heads),
        op("GatedRMSNorm", ["o", "weight", "z"], ["y"], epsilon=1e-6),
    ]
    state, matrix = (BF16, ["B", 3, 768]), (FLOAT, ["B", 4, 128, 64])
    given = {"x": (BF16, ["B", "T", 768]), "taps": (BF16, [768, 1, 4]), "state": state, "z": (BF16, ["B", "T", 256])}
    given |= {name: (BF16, ["B", "T", 4]) for name in ("a", "b")} | {"weight": (BF16, [64]), "S": matrix}
    given |= {name: (BF16, [4]) for name in ("A_log", "dt_bias")}
    given |= {name: (TensorProto.INT32, ["B"]) for name in ("n_tokens", "n_commit")}
    made = {"y": (BF16, ["B", "T", 256]), "S_out": matrix, "state_out": state}
    made |= {"o": (BF16, ["B", "T", 256])} if read_again else {}
    values = [[make_tensor_value_info(name, *kind) for name, kind in side.items()] for side in (given, made)]
    return make_model(make_graph(nodes, "g", *values))


@pytest.mark.parametrize(
    ("phase", "slots", "read_again", "expected"),
    [
        ("decode", 3, False, ["ConvGatedDeltaNorm"]),
        ("speculate", 2, False, ["ConvGatedDeltaNorm"]),
        ("prefill", 1, False, ["CausalConv1d", "GatedDeltaRule", "GatedRMSNorm"]),
        ("decode", 1, True, ["CausalConv1d", "GatedDeltaRule", "GatedRMSNorm"]),
    ],
)
def test_a_delta_rule_and_its_neighbours_join_in_small_calls(
    phase: str, slots: int, read_again: bool, expected: list[str]
) -> None:
    made = compile_plan(delta_rule(read_again).SerializeToString(), profile(phase, slots, 256, 128)).plan
    assert [step.op for step in made.steps] == expected
    for step in made.steps[:1] if expected[0].startswith("ConvGated") else ():
        assert step.outputs == ["y", "S_out", "state_out"] and made.launches == 1
        (counts,) = made.constants.values()
        assert counts.array().tolist() == [0] * (2 * slots)


def attention(read_again: bool = False, swapped: bool = False) -> onnx.ModelProto:
    """The heads' norms and rotation, and the attention over them; `read_again`: the turned keys are a result too;
    `swapped`: the attention takes the gate as its queries."""
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64}
    q, gate = ("gate", "q") if swapped else ("q", "gate")
    nodes = [
        op("QkNormRope", ["qg", "k", "qw", "kw", "cos", "sin"], ["q", "turned", "gate"], **heads, epsilon=1e-6),
        op("GatedAttention", [q, "turned", "v", gate, "kc", "vc", "past", "n"], ["y", "kc_out", "vc_out"], **heads),
    ]
    cache = (BF16, ["B", 2, "capacity", 64])
    given = {"qg": (BF16, ["B", "T", 768]), "k": (BF16, ["B", "T", 128]), "v": (BF16, ["B", "T", 128])}
    given |= {name: (BF16, [64]) for name in ("qw", "kw")} | {name: (BF16, ["B", "T", 8]) for name in ("cos", "sin")}
    given |= {name: cache for name in ("kc", "vc")} | {name: (TensorProto.INT32, ["B"]) for name in ("past", "n")}
    made = {"y": (BF16, ["B", "T", 384]), "kc_out": cache, "vc_out": cache}
    made |= {"turned": (BF16, ["B", "T", 128])} if read_again else {}
    values = [[make_tensor_value_info(name, *kind) for name, kind in side.items()] for side in (given, made)]
    return make_model(make_graph(nodes, "g", *values))


@pytest.mark.parametrize(
    ("phase", "slots", "changes", "launches"),
    [
        ("decode", 3, {}, 1),
        ("speculate", 2, {}, 2),
        ("prefill", 1, {}, None),
        ("decode", 1, {"read_again": True}, None),
        ("decode", 1, {"swapped": True}, None),
    ],
)
def test_an_attention_and_its_rotation_join_in_small_calls(
    phase: str, slots: int, changes: dict[str, bool], launches: int | None
) -> None:
    made = compile_plan(attention(**changes).SerializeToString(), profile(phase, slots, 256, 128)).plan
    if launches is None:
        assert [step.op for step in made.steps] == ["QkNormRope", "GatedAttention"]
        return
    (step,), (counts,) = made.steps, made.constants.values()
    assert step.inputs == ["qg", "k", "qw", "kw", "cos", "sin", "v", "kc", "vc", "past", "n", "/arrived"]
    assert step.outputs == ["y", "kc_out", "vc_out"] and made.launches == launches
    assert counts.array().tolist() == [0] * (2 * slots)


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.int32).reshape(2, 3), np.float32(0.25), np.zeros((0, 4))])
def test_constants_keep_their_values(array: np.ndarray) -> None:
    dtype = "i32" if array.dtype == np.int32 else "f32"
    found = Constant.of(np.asarray(array), dtype).array()
    np.testing.assert_array_equal(found, array)
    assert found.shape == np.shape(array)


@pytest.fixture
def artifact(native_nano: Nano, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native_nano("bf16"), tmp_path / "artifact", symlinks=True))


def loaded(artifact: Path, path: Path | None = None, **changes: Any) -> NativeExecutor:
    entry = replace(load_engine(artifact, "native").plans["model.decode"], **changes)
    return NativeExecutor(path or artifact / "engine" / "native" / entry.file, entry, HostCuda())


def test_another_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", artifact / "manifest.json"):
        with pytest.raises(ArtifactError, match="is not the plan that was built"):
            loaded(artifact, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=99), "has format 99"),
        (lambda raw: raw["steps"][0].update(op="Unheard"), "calls Unheard"),
        (lambda raw: raw["steps"][0].update(workspace=-1), "malformed"),
        (lambda raw: raw.update(more=1), "unknown field"),
    ],
)
def test_a_plan_of_another_version_is_refused(artifact: Path, change: Callable[[Any], None], message: str) -> None:
    entry = load_engine(artifact, "native").plans["model.decode"]
    path = artifact / "engine" / "native" / entry.file
    raw = json.loads(path.read_text())
    change(raw)
    path.unlink()
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=message):
        loaded(artifact, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_nothing_runs_before_it_is_bound(artifact: Path) -> None:
    executor = loaded(artifact)
    with pytest.raises(BuildError, match="bytes of scratch"):
        executor.use_scratch(4096, executor.scratch_bytes - 1)
    with pytest.raises(BuildError, match="is not bound"):
        executor.enqueue(executor._cuda.stream)


def test_built_again_is_taken_from_the_cache(artifact: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for folder in (artifact, Path(shutil.copytree(artifact, tmp_path / "other", symlinks=True))):
        shutil.rmtree(folder / "engine")
        build_engine(folder, BuildOptions("native", None, 1, 128, 16, cache=tmp_path / "cache"), log=said.append)
    assert sum("building for any GPU" in line for line in said) == 6
    assert sum("taken from the cache" in line for line in said) == 6


def test_the_command(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", str(artifact), "--flavour", "native", "--json", "--max-context", "64"]
    assert main([*build, "--gpu", "sm_90"]) == 2
    assert "a native plan serves every GPU" in capsys.readouterr().err
    assert main(build) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert sorted(plans) == sorted(f"{g}.{p}" for g in ("model", "mtp") for p in ("decode", "speculate", "prefill"))
    assert built_flavour(artifact) == "native"
    with pytest.raises(ArtifactError, match="at most 1 slots and 64 tokens"):
        TensorRtBackend(artifact, cuda=HostCuda()).new_state("model", 2, 65)


def test_what_only_pictures_need_may_be_absent(artifact: Path) -> None:
    entry = load_manifest(artifact).graphs["model"]
    found = load_engine(artifact, "native").plans["model.decode"].bindings
    seeing = replace(entry, inputs=[*entry.inputs, TensorEntry("vision_index", "int32", ["B", "T"])])
    assert bindings(seeing, found) == bindings(entry, found) == found
    other = replace(entry, inputs=[*entry.inputs, TensorEntry("more", "int32", ["B", "T"])])
    with pytest.raises(ArtifactError, match="disagree on more"):
        bindings(other, found)
