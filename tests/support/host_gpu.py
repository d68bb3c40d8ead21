"""Engines without plans, for executors that need none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from deltart.artifact import load_manifest
from deltart.manifest import SEEING, GraphEntry, VisionEntry
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import EngineManifest, PlanEntry
from deltart.verify.tensorrt_exposed import GRAPH, PHASES, exposed_graph


def write_engine(artifact: Path, slots: int, max_context: int, chunk: int, exact: bool = True) -> EngineManifest:
    """An engine.json for a lowered artifact, as `deltart build` writes it but without plans.

    `exact` makes activations float32.
    """
    entries: dict[str, PlanEntry] = {}
    engine = EngineManifest("rtx", slots, max_context, chunk, "bf16", entries, "")
    manifest = load_manifest(artifact)
    for graph, entry in manifest.graphs.items():
        content, phases = (artifact / entry.files["tensorrt"]).read_bytes(), plans.PHASES
        if manifest.vision is not None and graph == manifest.vision.graph:
            phases = (plans.FRAME,)
        entries |= _plans(graph, entry, content, phases, engine, exact, manifest.vision)
        if SEEING in entry.files:
            content = (artifact / entry.files[SEEING]).read_bytes()
            entries |= _plans(graph, entry, content, ("prefill",), engine, exact, manifest.vision)
    folder = plans.engine_folder(artifact, "rtx")
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder)
    return engine


def write_exposed(artifact: Path, engine: EngineManifest, exact: bool = True) -> EngineManifest:
    """`engine` with the plans that `build_exposed` adds, without the files."""
    content, entry = exposed_graph(artifact, engine)
    added = _plans(GRAPH, entry, content, PHASES, engine, exact)
    engine = replace(engine, plans={**engine.plans, **added})
    engine.save(plans.engine_folder(artifact, "rtx"))
    return engine


def _plans(
    graph: str, entry: GraphEntry, content: bytes, phases: Sequence[str], engine: EngineManifest, exact: bool,
    vision: VisionEntry | None = None,
) -> dict[str, PlanEntry]:  # fmt: skip
    model = onnx.load_model_from_string(content)
    bindings = plans.bindings(entry, [plans.read_binding(v) for v in [*model.graph.input, *model.graph.output]])
    if exact:
        bindings = [b if b.role == "weight" or b.dtype != "bfloat16" else replace(b, dtype="float32") for b in bindings]
    digest, made = hashlib.sha256(content).hexdigest(), {}
    for phase in phases:
        if phase == plans.FRAME:
            assert vision is not None
            profile = plans.frame_profile(vision)
        else:
            profile = plans.profile(phase, engine.slots, engine.max_context, engine.chunk)
        if any(b.name == "vision_index" for b in bindings):
            profile = plans.seeing_profile(profile)
        name = f"{graph}.{phase}"
        made[name] = PlanEntry(
            f"{name}.plan", graph, phase, name, "", 0, "rtx", "", [], profile, bindings, {}, digest, 0, 0.0
        )
    return made
