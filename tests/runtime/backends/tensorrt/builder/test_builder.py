"""Plans built for GPUs that are not there."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError, BuildError
from deltart.plugins import trt_plugin
from deltart.plugins.code_hash import plugin_code
from deltart.plugins.gated_delta_rule import plugin as gated_delta_rule
from deltart.plugins.registry import FUSED_OPS, OPS
from deltart.runtime.backends.gpu import engine_manifest as tensorrt_plans
from deltart.runtime.backends.tensorrt import library as tensorrt_library
from deltart.runtime.backends.tensorrt.builder import compile as tensorrt_compile
from deltart.runtime.backends.tensorrt.builder import job as builder_job
from deltart.runtime.backends.tensorrt.builder import makers as tensorrt_makers
from deltart.runtime.backends.tensorrt.builder import precision as tensorrt_precision
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt.builder.compile import compile_plan
from deltart.runtime.backends.tensorrt.builder.job import TensorRtJob
from deltart.runtime.backends.tensorrt.builder.store import EngineStore, engine_store
from deltart.runtime.backends.tensorrt.caches import TimingCache
from deltart.verify.tensorrt_exposed import build_exposed, points

pytestmark = pytest.mark.skipif(
    "rtx" not in tensorrt_library.installed(), reason="tensorrt_rtx is not installed: no plan can be built here"
)
OPTIONS = BuildOptions("rtx", slots=2, max_context=64, chunk=128, prefill_activations="bf16")


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
    assert set(engine.plans) == {f"{g}.{p}" for g in ("model", "mtp") for p in ("decode", "speculate", "prefill")}
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
    build_engine(built / "artifact", replace(OPTIONS, cache=built / "cache"), log=lines.append)
    assert len(lines) == 6 and all("up to date" in line for line in lines)


def test_a_build_with_other_options_leaves_its_own_plans_alone_under_their_names(built: Path, artifact: Path) -> None:
    first = build_engine(artifact, replace(OPTIONS, cache=built / "cache"))
    second = build_engine(artifact, replace(OPTIONS, cache=built / "cache", chunk=64))
    folder = artifact / "engine" / "rtx"
    kept = {plan.file for plan in second.plans.values()}
    assert {p.name for p in folder.iterdir()} == {*kept, "engine.json"} != {p.file for p in first.plans.values()}


def test_a_killed_build_leaves_the_engine_that_was_there(built: Path, artifact: Path) -> None:
    first = build_engine(artifact, replace(OPTIONS, cache=built / "cache"))

    def log(line: str) -> None:
        if line.startswith("mtp.prefill"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(artifact, replace(OPTIONS, cache=built / "cache", chunk=64), log=log)
    assert tensorrt_plans.load_engine(artifact, "rtx") == first
    for plan in first.plans.values():
        content = (artifact / "engine" / "rtx" / plan.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == plan.sha256


def test_whoever_is_second_takes_the_firsts_plan(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process stores a plan of the same key, and other bytes, while this one builds its own."""
    cache, other = tmp_path / "cache", tmp_path / "other"
    shutil.copytree(artifact, other)
    made = TensorRtJob.build

    def build(self: TensorRtJob, *arguments: Any) -> Any:
        plan, entry = made(self, *arguments)
        if self.name == "mtp.decode" and not (cache / f"{self.key}.plan").exists():
            with engine_store(other, "rtx", cache, lambda line: None) as store:
                theirs = bytes(plan) + b"theirs"
                store._keep(self, memoryview(theirs), replace(entry, sha256=hashlib.sha256(theirs).hexdigest()))
        return plan, entry

    monkeypatch.setattr(TensorRtJob, "build", build)
    engine = build_engine(artifact, replace(OPTIONS, cache=cache))
    content = (artifact / "engine" / "rtx" / engine.plans["mtp.decode"].file).read_bytes()
    assert content.endswith(b"theirs") and hashlib.sha256(content).hexdigest() == engine.plans["mtp.decode"].sha256


def test_another_artifact_takes_the_cached_plans(built: Path, artifact: Path) -> None:
    lines: list[str] = []
    engine = build_engine(artifact, replace(OPTIONS, cache=built / "cache"), log=lines.append)
    assert all("taken from the cache" in line for line in lines)
    first = tensorrt_plans.load_engine(built / "artifact", "rtx")
    assert {n: p.key for n, p in engine.plans.items()} == {n: p.key for n, p in first.plans.items()}


def test_a_damaged_plan_is_built_again(built: Path) -> None:
    (plan,) = (built / "artifact" / "engine" / "rtx").glob("mtp.decode.*.plan")
    plan.unlink()
    plan.write_bytes(b"damaged")
    lines: list[str] = []
    build_engine(built / "artifact", OPTIONS, log=lines.append)
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
            plan.onnx_sha256, "rtx", plan.library, options.gpus or tensorrt_makers.DEFAULT_GPUS, profile, plugin_code()
        )
        for profile in profiles
    }
    assert not keys >= {engine.plans["model.decode"].key, plan.key}


def test_a_removed_plugin_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tensorrt_library.load_tensorrt("rtx")
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

    broken = replace(gated_delta_rule.KERNELS["GatedDeltaRule"], workspace_bytes=refuse)
    monkeypatch.setitem(gated_delta_rule.KERNELS, "GatedDeltaRule", broken)
    with pytest.raises(BuildError, match="no tiling"):
        build_engine(artifact, OPTIONS)
    assert not list((artifact / "engine").rglob("*.*"))


@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupted_build_leaves_no_engine(artifact: Path, inside: bool) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if not inside and line.startswith("model.prefill: building"):
            raise KeyboardInterrupt

    def progress(share: float) -> None:
        if lines[-1].startswith("model.prefill"):  # TensorRT is the caller
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(artifact, OPTIONS, log=log, progress=progress if inside else lambda share: None)
    with pytest.raises(ArtifactError, match="deltart build"):
        tensorrt_plans.load_engine(artifact, "rtx")
    left = sorted(p.name for p in (artifact / "engine").rglob("*.*"))
    assert [name.rsplit(".", 2)[0] for name in left] == ["model.decode", "model.speculate"]


def compile_one(artifact: Path, **more: Any) -> None:
    """The smallest plan there is."""
    content, profile = (artifact / "model.tensorrt.onnx").read_bytes(), tensorrt_plans.profile("decode", 1, 64, 64)
    compile_plan(tensorrt_library.load_tensorrt("rtx"), content, ("sm_89",), profile, **more)


def test_progress_grows_from_nothing_to_all(lowered: Path) -> None:
    told: list[float] = []
    compile_one(lowered, progress=told.append)
    assert told[0] == 0.0 and told[-1] == 1.0 and told == sorted(told)
    assert len({round(share, 2) for share in told}) > 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX's timing caches work, and hold nothing
def test_timings_are_kept_by_a_build_that_succeeds(
    lowered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings"
    for _ in range(2):
        compile_one(lowered, timings=TimingCache(path))
        assert path.stat().st_size > 100
    path.unlink()
    broken = replace(gated_delta_rule.KERNELS["GatedDeltaRule"], workspace_bytes=lambda call: 1 // 0)
    monkeypatch.setitem(gated_delta_rule.KERNELS, "GatedDeltaRule", broken)
    with pytest.raises(BuildError, match="ZeroDivisionError"):
        compile_one(lowered, timings=TimingCache(path))
    assert not path.exists()


def test_exposed_plans_return_every_block(built: Path, artifact: Path, tmp_path: Path) -> None:
    engine = build_engine(artifact, replace(OPTIONS, cache=built / "cache"))
    exposed = build_exposed(artifact, "rtx", tmp_path / "cache")
    assert tensorrt_plans.load_engine(artifact, "rtx") == exposed
    assert {n: p for n, p in exposed.plans.items() if p.graph != "exposed"} == engine.plans
    assert points(exposed) == ["embed.h", *(f"layers.{n}.h" for n in range(4))]
    for phase in ("decode", "prefill"):
        plan, plain = exposed.plans[f"exposed.{phase}"], engine.plans[f"model.{phase}"]
        assert (plan.plugins, plan.profile, plan.gpus) == (plain.plugins, plain.profile, plain.gpus)
        assert plan.by_role["weight"] == plain.by_role["weight"] and plan.by_role["state"] == plain.by_role["state"]
        assert {b.dtype for b in plan.by_role["output"] if b.name != "logits"} == {"bfloat16"}
        assert hashlib.sha256((artifact / "engine" / "rtx" / plan.file).read_bytes()).hexdigest() == plan.sha256
    lines: list[str] = []
    build_exposed(artifact, "rtx", tmp_path / "cache", lines.append)
    assert len(lines) == 2 and all("up to date" in line for line in lines)


def test_exposed_prefill_rounds_its_activations_as_the_engine_does(
    built: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(artifact, replace(OPTIONS, cache=built / "cache"))
    replace(engine, prefill_activations="fp8").save(artifact / "engine" / "rtx")
    rounds: dict[str, set[int]] = {}

    def note(self: EngineStore, job: TensorRtJob, *more: object) -> tensorrt_plans.PlanEntry:
        nodes = onnx.load_model_from_string(job.content).graph.node
        rounds[job.phase] = {a.i for node in nodes for a in node.attribute if a.name == tensorrt_precision.ATTRIBUTE}
        return engine.plans["model.decode"]

    monkeypatch.setattr(EngineStore, "obtain", note)
    build_exposed(artifact, "rtx", None)
    assert rounds == {"decode": {0}, "prefill": {1}}


def test_exposed_plans_need_the_graph_that_was_built(built: Path, artifact: Path) -> None:
    build_engine(artifact, replace(OPTIONS, cache=built / "cache"))
    lowered = artifact / "model.tensorrt.onnx"
    model = onnx.load(lowered)
    model.producer_version = "another"
    onnx.save(model, lowered)
    load_manifest(artifact).save(artifact)
    with pytest.raises(ArtifactError, match="not the graph that the plans were built from"):
        build_exposed(artifact, "rtx", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus": ("sm_90",)}, "sm_89"),
        ({"gpus": ()}, "sm_89"),
        ({"gpus": ("current", "sm_89")}, "alone"),
        ({"max_context": 4096}, "2048"),
        ({"slots": 0}, "--slots 0"),
    ],
)
def test_options_that_fit_no_plan(artifact: Path, change: dict, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        build_engine(artifact, replace(OPTIONS, **change))


def test_the_present_gpu_is_a_target(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name in the record and the key, since "current" is another GPU elsewhere."""
    told: list[tuple[str, ...]] = []

    def compile_nothing(library: object, content: bytes, gpus: tuple[str, ...], *more: object) -> None:
        told.append(gpus)
        raise BuildError("that was all")

    monkeypatch.setattr(tensorrt_makers, "device_name", lambda: "NVIDIA H100 sm_90")
    monkeypatch.setattr(builder_job, "compile_plan", compile_nothing)
    with pytest.raises(BuildError, match="that was all"):
        build_engine(artifact, replace(OPTIONS, gpus=("current",)))
    assert told == [("NVIDIA H100 sm_90",)]
    trt = tensorrt_library.load_tensorrt("rtx").trt
    assert tensorrt_compile._capability(trt, told[0][0]) == trt.ComputeCapability.CURRENT
    assert tensorrt_compile._capability(trt, "sm_120") == trt.ComputeCapability.SM120


def test_graph_and_manifest_must_agree(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    text = manifest.graphs["model"]
    replace(manifest, graphs={**manifest.graphs, "model": replace(text, weights=text.weights[:-1])}).save(artifact)
    with pytest.raises(ArtifactError, match=r"disagree on lm_head\.weight"):
        build_engine(artifact, OPTIONS)


@pytest.mark.parametrize("activations", ["fp8", "auto"])
def test_e4m3_activations_are_for_prefill_alone(
    built: Path, artifact: Path, activations: tensorrt_plans.Activations
) -> None:
    lines: list[str] = []
    options = replace(OPTIONS, cache=built / "cache", prefill_activations=activations)
    engine = build_engine(artifact, options, log=lines.append)
    assert tensorrt_plans.load_engine(artifact, "rtx").prefill_activations == activations
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
    load_manifest(artifact).save(artifact)
    with pytest.raises(BuildError, match="without a block-FP8 weight"):
        build_engine(artifact, replace(OPTIONS, prefill_activations="fp8"))


def test_a_warning_of_tensorrt_is_shown(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    whole = builder_job.compile_plan

    def compile_and_warn(library: tensorrt_library.TensorRt, *arguments: Any) -> Any:
        made = whole(library, *arguments)
        for _ in range(2):
            library.logger.log(library.trt.ILogger.WARNING, "a tactic needs more memory")
        return made

    monkeypatch.setattr(builder_job, "compile_plan", compile_and_warn)
    build_engine(artifact, OPTIONS, log=lines.append)
    assert lines.count("model.decode: TensorRT warns: a tactic needs more memory") == 1
    assert not [line for line in lines if "Int64" in line]
