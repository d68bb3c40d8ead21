"""Plans built for GPUs that are not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from deltart.errors import ArtifactError, BuildError
from deltart.manifest import load_manifest
from deltart.plugins import trt_plugin
from deltart.plugins.gated_delta_rule import plugin as gated_delta_rule
from deltart.plugins.registry import FUSED_OPS, OPS
from deltart.runtime.backends import tensorrt_library, tensorrt_plans
from deltart.runtime.backends.tensorrt_builder import BuildOptions, build_engine

pytestmark = pytest.mark.skipif(
    "rtx" not in tensorrt_library.installed(), reason="tensorrt_rtx is not installed: no plan can be built here"
)
OPTIONS = BuildOptions("rtx", slots=2, max_context=64, chunk=128)


@pytest.fixture
def artifact(lowered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lowered, tmp_path / "artifact"))


@pytest.fixture(scope="module")
def built(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with plans, and the cache they came through beside it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(lowered, folder / "artifact")
    build_engine(folder / "artifact", replace(OPTIONS, cache=folder / "cache"), "deltart build artifact")
    return folder


def composites(path: Path) -> Counter[str]:
    """Composite nodes of an exported graph, counted through its layer functions."""
    model = onnx.load(path, load_external_data=False)
    functions = {f.name: Counter(n.op_type for n in f.node if n.domain == "deltart") for f in model.functions}
    return sum((functions[call.op_type] for call in model.graph.node), Counter())


def unfused(plugins: Mapping[str, int]) -> Counter[str]:
    """Composite nodes of the model behind a plan's plugins: what was fused in pairs or made of plain nodes undone."""
    count = Counter(plugins)
    assert count["QkNormRope"] == count["GatedAttention"] and count["LmHead"] == 1
    pairs = count["Fp8BlockGateUp"] + count["DeltaNetProjections"]
    count["Fp8BlockLinear"] += 2 * pairs + 3 * count["AttentionProjections"]
    fused = {spec.name for spec in FUSED_OPS}
    return Counter({op: n for op, n in count.items() if op not in fused})


def test_plans_hold_every_composite_node_and_no_weight(built: Path) -> None:
    artifact = built / "artifact"
    manifest, engine = load_manifest(artifact), tensorrt_plans.load_engine(artifact, "rtx")
    assert set(engine.plans) == {f"{g}.{p}" for g in ("model", "mtp") for p in ("decode", "verify", "prefill")}
    assert engine.command == "deltart build artifact"
    for plan in engine.plans.values():
        entry = manifest.graphs[plan.graph]
        assert unfused(plan.plugins) == composites(artifact / entry.files["portable"])
        assert [b.name for b in plan.bindings if b.role == "weight"] == entry.weights
        content = (artifact / "engine" / "rtx" / plan.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (plan.nbytes, plan.sha256)
        assert 0 < plan.scratch_bytes < 50_000_000
        dtypes = {b.name: b.dtype for b in plan.bindings}
        assert all(dtypes[w] == "int8" for w in entry.weights if manifest.tensors[w].dtype == "F8_E4M3")


def test_a_second_build_builds_nothing(built: Path) -> None:
    lines: list[str] = []
    build_engine(built / "artifact", replace(OPTIONS, cache=built / "cache"), report=lines.append)
    assert len(lines) == 6 and all("up to date" in line for line in lines)


def test_another_artifact_takes_the_cached_plans(built: Path, artifact: Path) -> None:
    lines: list[str] = []
    engine = build_engine(artifact, replace(OPTIONS, cache=built / "cache"), report=lines.append)
    assert all("taken from the cache" in line for line in lines)
    first = tensorrt_plans.load_engine(built / "artifact", "rtx")
    assert {n: p.key for n, p in engine.plans.items()} == {n: p.key for n, p in first.plans.items()}


def test_a_damaged_plan_is_built_again(built: Path) -> None:
    plan = built / "artifact" / "engine" / "rtx" / "mtp.decode.plan"
    plan.unlink()
    plan.write_bytes(b"damaged")
    lines: list[str] = []
    build_engine(built / "artifact", OPTIONS, report=lines.append)
    assert sum("building" in line for line in lines) == 1 and plan.stat().st_size > 1000


@pytest.mark.parametrize("change", [{"slots": 3}, {"chunk": 64}, {"gpus": ("sm_89",)}, {"max_context": 32}])
def test_options_change_the_key(built: Path, change: dict) -> None:
    engine = tensorrt_plans.load_engine(built / "artifact", "rtx")
    plan, options = engine.plans["model.prefill"], replace(OPTIONS, **change)
    profiles = [
        tensorrt_plans.profile(p, options.slots, options.max_context or 0, options.chunk) for p in ("decode", "prefill")
    ]
    keys = {
        tensorrt_plans.plan_key(
            plan.onnx_sha256, "rtx", plan.library, options.gpus, profile, tensorrt_plans.plugin_code()
        )
        for profile in profiles
    }
    assert not keys >= {engine.plans["model.decode"].key, plan.key}


def test_a_removed_plugin_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tensorrt_library.load_library("rtx")
    removed = [spec for spec in OPS if spec.name == "GatedDeltaRule"]
    trt_plugin.unregister_plugins(library.trt, removed)
    monkeypatch.setattr(tensorrt_library, "register_plugins", lambda trt, specs: None)
    try:
        with pytest.raises(BuildError, match="GatedDeltaRule"):
            build_engine(artifact, OPTIONS)
    finally:
        trt_plugin.register_plugins(library.trt, removed)
    assert not list((artifact / "engine").rglob("*.*"))


def test_an_error_inside_a_plugin_stops_the_build(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: object) -> int:
        raise BuildError("no tiling for this shape")

    monkeypatch.setattr(gated_delta_rule, "KERNEL", replace(gated_delta_rule.KERNEL, workspace_bytes=refuse))
    with pytest.raises(BuildError, match="no tiling"):
        build_engine(artifact, OPTIONS)
    assert not list((artifact / "engine").rglob("*.*"))


@pytest.mark.parametrize("moment", ["model.prefill: building", "model.prefill: Building"])
def test_an_interrupted_build_leaves_no_engine(artifact: Path, moment: str) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(moment):  # before TensorRT is called, and from inside it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(artifact, OPTIONS, report=interrupt)
    with pytest.raises(ArtifactError, match="deltart build"):
        tensorrt_plans.load_engine(artifact, "rtx")
    left = sorted(p.name for p in (artifact / "engine").rglob("*.*"))
    assert left == ["model.decode.json", "model.decode.plan", "model.verify.json", "model.verify.plan"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus": ("sm_90",)}, "sm_89"),
        ({"gpus": ()}, "sm_89"),
        ({"max_context": 4096}, "2048"),
        ({"slots": 0}, "0 slots"),
    ],
)
def test_options_that_fit_no_plan(artifact: Path, change: dict, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        build_engine(artifact, replace(OPTIONS, **change))


def test_graph_and_manifest_must_agree(artifact: Path) -> None:
    raw = json.loads((artifact / "manifest.json").read_text())
    raw["graphs"]["model"]["weights"].pop()
    (artifact / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=r"disagree on lm_head\.weight"):
        build_engine(artifact, OPTIONS)


def test_fp8_activations_are_for_prefill_alone(built: Path, artifact: Path) -> None:
    lines: list[str] = []
    options = replace(OPTIONS, cache=built / "cache", prefill_activations="fp8")
    engine = build_engine(artifact, options, report=lines.append)
    assert tensorrt_plans.load_engine(artifact, "rtx").prefill_activations == "fp8"
    exact = tensorrt_plans.load_engine(built / "artifact", "rtx")
    assert exact.prefill_activations == "bf16"
    changed = {name for name, plan in engine.plans.items() if plan.key != exact.plans[name].key}
    assert changed == {"model.prefill", "mtp.prefill"}
    assert sum("taken from the cache" in line for line in lines) == 4


def test_fp8_activations_need_block_fp8_weights(artifact: Path) -> None:
    for path in artifact.glob("*.tensorrt.onnx"):
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type in ("Fp8BlockLinear", *(spec.name for spec in FUSED_OPS)):
                node.ClearField("attribute")
        path.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="without a block-FP8 weight"):
        build_engine(artifact, replace(OPTIONS, prefill_activations="fp8"))
