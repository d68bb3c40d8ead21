"""Plans of the text model with every block's hidden state among the outputs, for comparing an engine layer by layer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import onnx

from deltart.artifact import load_manifest, read_graph
from deltart.errors import ArtifactError
from deltart.manifest import GraphEntry, TensorEntry
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import EngineManifest, Flavour
from deltart.runtime.backends.native.builder.lm_head import with_fp8_head
from deltart.runtime.backends.tensorrt.builder.compile import Log
from deltart.runtime.backends.tensorrt.builder.makers import TARGET, plan_maker
from deltart.runtime.backends.tensorrt.builder.precision import with_activations
from deltart.runtime.backends.tensorrt.builder.store import engine_store
from deltart.verify.exposed import expose

GRAPH = "exposed"  # beside "model" and "mtp" in engine.json
PHASES = ("decode", "prefill")


def build_exposed(artifact: Path, flavour: Flavour, cache: Path | None, log: Log = lambda line: None) -> EngineManifest:
    """Add the plans of graph "exposed" to an artifact's engine.json, built as those of "model" were.

    Nothing else changes: the weights are those that "model" reads, and no plan is loaded before it is called.

    Raises:
        ArtifactError: the artifact has no plans, or its graphs are not those that the plans were built from.
        BuildError, MissingDependencyError: as build_engine.
    """
    engine, maker = plans.load_engine(artifact, flavour), plan_maker(flavour)
    content, entry = exposed_graph(artifact, engine, maker.target)
    gpus = tuple(engine.plans["model.decode"].gpus)
    built = dict(engine.plans)
    with engine_store(artifact, flavour, cache, log) as store:
        for phase in PHASES:
            if phase == "prefill":
                content = with_activations(content, engine.prefill_activations)
            profile = plans.profile(phase, engine.slots, engine.max_context, engine.chunk)
            job = maker.job(GRAPH, entry, phase, gpus, profile, content)
            built[job.name] = store.obtain(job, log, lambda share: None)
        result = replace(engine, plans=built)
        store.commit(result)
    return result


def exposed_graph(artifact: Path, engine: EngineManifest, target: str = TARGET) -> tuple[bytes, GraphEntry]:
    """(the lowered text graph with its blocks' states as outputs, what a manifest would say of it); see points."""
    manifest = load_manifest(artifact)
    entry = manifest.graphs["model"]
    lowered = read_graph(artifact, manifest, "model", target)
    if engine.lm_head is not None:
        lowered, entry, _ = with_fp8_head(lowered, entry)
    if hashlib.sha256(lowered).hexdigest() != engine.plans["model.decode"].onnx_sha256:
        raise ArtifactError(
            f"{artifact / entry.files[target]} is not the graph that the plans were built from",
            "the same graph",
            f"run `deltart build {artifact}` again",
        )
    model = onnx.load_model_from_string(lowered)
    names = expose(model)
    expected = expose(onnx.load_model_from_string(read_graph(artifact, manifest, "model", "portable")))
    if names != expected:
        raise ArtifactError(f"the lowered graph has the blocks {names}", f"{expected}, as the portable graph")
    axes = next(o for o in entry.outputs if o.name == "hidden").axes
    outputs = [*entry.outputs, *(TensorEntry(name, "float32", axes) for name in names)]
    return model.SerializeToString(deterministic=True), replace(entry, outputs=outputs)


def points(engine: EngineManifest) -> list[str]:
    """Names of the hidden states between blocks that graph "exposed" returns, in order."""
    names = [b.name for b in engine.plans[f"{GRAPH}.decode"].by_role["output"]]
    return [name for name in names if name not in ("hidden", "logits")]
