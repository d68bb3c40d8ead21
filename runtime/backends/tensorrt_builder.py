"""Builds TensorRT plans from lowered graphs: weightless, several profiles, several GPU targets, no GPU for "rtx"."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from deltart.errors import ArtifactError, BuildError, DeltaRTError
from deltart.manifest import Manifest, load_manifest
from deltart.plugins.spec import DOMAIN
from deltart.plugins.trt_plugin import take_failure
from deltart.runtime.backends import tensorrt_plans as plans
from deltart.runtime.backends.tensorrt_library import Library, load_library
from deltart.runtime.backends.tensorrt_plans import Binding, EngineManifest, Flavour, PlanEntry, Profile

TARGET = "tensorrt"
DEFAULT_GPUS = ("sm_80", "sm_89", "sm_120")
Report = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build. `gpus` are compute capabilities ("sm_89"), for "rtx" only; `cache` is shared by artifacts."""

    flavour: Flavour | None = None
    gpus: tuple[str, ...] = DEFAULT_GPUS
    slots: int = 1
    max_context: int | None = None
    chunk: int = 1024
    cache: Path | None = None


def build_engine(
    artifact: Path, options: BuildOptions, command: str = "", report: Report = lambda line: None
) -> EngineManifest:
    """Build, or take from a cache, the plans of every graph of `artifact` that has a "tensorrt" file.

    Raises:
        ArtifactError: the artifact is incomplete or has no lowered graph.
        BuildError: the options fit no plan, or TensorRT refuses the graph; nothing is left under a final name.
        MissingDependencyError: TensorRT is not installed.
    """
    manifest = load_manifest(artifact)
    context = _context(options, manifest)
    library = load_library(options.flavour)
    gpus = _gpus(library, options.gpus)
    folder = plans.engine_folder(artifact, library.flavour)
    folder.mkdir(parents=True, exist_ok=True)
    built = {}
    for graph, entry in manifest.graphs.items():
        if TARGET not in entry.files:
            raise ArtifactError(
                f"{artifact} has no '{TARGET}' graph of '{graph}'", todo="lower it first: deltart build does"
            )
        source = artifact / entry.files[TARGET]
        for phase in plans.PHASES:
            name = f"{graph}.{phase}"
            job = _Job(library, source, name, gpus, plans.profile(phase, options.slots, context, options.chunk))
            built[name] = _obtain(job, manifest, graph, folder, options.cache, report)
    versions = {"deltart": manifest.versions.get("deltart", ""), library.trt.__name__: library.version}
    result = EngineManifest(library.flavour, options.slots, context, options.chunk, built, command, versions)
    result.save(folder)
    return result


@dataclass(frozen=True)
class _Job:
    """One plan to build."""

    library: Library
    source: Path
    name: str
    gpus: tuple[str, ...]
    profile: Profile

    def key(self, onnx_sha256: str) -> str:
        return plans.plan_key(onnx_sha256, self.library.flavour, self.library.version, self.gpus, self.profile)


def _context(options: BuildOptions, manifest: Manifest) -> int:
    context = manifest.max_context if options.max_context is None else options.max_context
    if not 1 <= context <= manifest.max_context:
        raise BuildError(f"--max-context {context}", f"1 to {manifest.max_context}, the artifact's limit")
    if options.slots < 1 or options.chunk < 1:
        raise BuildError(f"{options.slots} slots and chunks of {options.chunk}", "at least one of each")
    return context


def _gpus(library: Library, asked: Sequence[str]) -> tuple[str, ...]:
    if library.flavour != "rtx":
        return ("current",)
    known = [f"sm_{n[2:].lower()}" for n in library.trt.ComputeCapability.__members__ if n.startswith("SM")]
    unknown = [gpu for gpu in asked if gpu not in known]
    if unknown or not asked:
        raise BuildError(f"--gpu {' '.join(unknown)}", f"some of {', '.join(known)}", "full TensorRT serves other GPUs")
    return tuple(asked)


def _obtain(job: _Job, manifest: Manifest, graph: str, folder: Path, cache: Path | None, report: Report) -> PlanEntry:
    content = job.source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    target = folder / f"{job.name}.plan"
    stored = None if cache is None else cache / f"{job.key(digest)}.plan"
    for place, label in ((target, "up to date"), (stored, "taken from the cache")):
        entry = None if place is None else _recorded(place, job.key(digest))
        if entry is not None and place is not None:
            report(f"{job.name}: {label} ({entry.nbytes / 1e6:.1f} MB)")
            if place != target:
                plans.link_or_copy(place, target)
                _record(target, entry)
            return entry
    report(f"{job.name}: building for {' '.join(job.gpus)}")
    entry, plan = _build(job, content, report)
    entry = replace(entry, graph=graph, bindings=plans.bindings(manifest.graphs[graph], entry.bindings))
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        plans.write_atomically(stored, plan)
        _record(stored, entry)
        plans.link_or_copy(stored, target)
    else:
        plans.write_atomically(target, plan)
    _record(target, entry)
    report(
        f"{job.name}: {entry.nbytes / 1e6:.1f} MB in {entry.seconds:.0f} s, scratch {entry.scratch_bytes / 1e6:.1f} MB"
    )
    return entry


def _recorded(plan: Path, key: str) -> PlanEntry | None:
    """The entry beside a finished plan of this key; None where there is none or the file is not that plan."""
    with suppress(OSError, KeyError, TypeError, json.JSONDecodeError):
        entry = plans.plan_entry(json.loads(plan.with_suffix(".json").read_text(encoding="utf-8")))
        if entry.key == key and hashlib.sha256(plan.read_bytes()).hexdigest() == entry.sha256:
            return entry
    return None


def _record(plan: Path, entry: PlanEntry) -> None:
    plans.write_atomically(plan.with_suffix(".json"), (json.dumps(asdict(entry), indent=1) + "\n").encode())


def _build(job: _Job, content: bytes, report: Report) -> tuple[PlanEntry, memoryview]:
    """Build one plan. The entry's bindings have no roles yet."""
    trt, started = job.library.trt, time.monotonic()
    model = onnx.load_model_from_string(content)
    composites = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    inputs, outputs = ([plans.read_binding(v) for v in values] for values in (model.graph.input, model.graph.output))
    for kept in (job.library.messages.errors, job.library.messages.info):
        kept.clear()
    builder = trt.Builder(job.library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(job.library, network, content)
    plugins = sum(network.get_layer(i).type == trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
    if plugins != composites.total():
        raise BuildError(f"{plugins} plugin layers came of {composites.total()} composite nodes", "one for each")
    config = _configure(job, builder, inputs, report)
    plan = builder.build_serialized_network(network, config)
    failure = take_failure()
    if plan is None or failure is not None:
        raise _failed(job.library, f"TensorRT could not build {job.name}", failure)
    view = memoryview(plan)
    missing = [op for op, count in composites.items() if bytes(view).count(op.encode()) < count]
    if missing:
        raise BuildError(f"the plan {job.name} lost plugins: {', '.join(missing)}", "every composite node in the plan")
    digest = hashlib.sha256(content).hexdigest()
    entry = PlanEntry(
        file=f"{job.name}.plan", graph="", phase=job.name.rpartition(".")[2], key=job.key(digest),
        sha256=hashlib.sha256(view).hexdigest(), nbytes=view.nbytes, flavour=job.library.flavour,
        library=job.library.version, gpus=list(job.gpus), profile=job.profile, bindings=[*inputs, *outputs],
        plugins=dict(composites), onnx_sha256=digest, scratch_bytes=_scratch_bytes(job.library.messages.info),
        seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip
    return entry, view


def _parse(library: Library, network: Any, content: bytes) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if parser.parse(content):
        return
    problems = [parser.get_error(i) for i in range(parser.num_errors)]
    missing = sorted({p.node_operator() for p in problems if "plugin" in p.desc().lower()})
    if missing:
        raise BuildError(
            f"TensorRT has no plugin for {', '.join(missing)}", "every composite op registered as a plugin",
            "a newer export needs the plugins of the same version",
        )  # fmt: skip
    raise _failed(
        library, f"TensorRT can't read the graph: {'; '.join(str(p.desc()) for p in problems)}", take_failure()
    )


def _configure(job: _Job, builder: Any, inputs: Sequence[Binding], report: Report) -> Any:
    trt = job.library.trt
    config = builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job.library.flavour == "rtx":
        config.num_compute_capabilities = len(job.gpus)
        for position, gpu in enumerate(job.gpus):
            config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{gpu[3:]}"], position)
    profile = builder.create_optimization_profile()
    bounds = [{axis: sizes[i] for axis, sizes in job.profile.axes.items()} for i in range(3)]
    for tensor in inputs:
        if any(isinstance(axis, str) for axis in tensor.axes):
            profile.set_shape(tensor.name, *(tensor.shape(sizes) for sizes in bounds))
    config.add_optimization_profile(profile)
    config.progress_monitor = _monitor(trt, job.name, report)
    return config


def _monitor(trt: Any, name: str, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                report(f"{name}: {phase}")

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def _failed(library: Library, found: str, failure: Exception | None) -> DeltaRTError:
    if isinstance(failure, DeltaRTError):
        return failure
    said = [*([] if failure is None else [repr(failure)]), *library.messages.errors[:5]]
    return BuildError(f"{found}: {' | '.join(said) or 'it gave no reason'}")


def _scratch_bytes(info: Sequence[str]) -> int:
    """Activation memory of the plan: TensorRT tells it in its log, and otherwise only with a GPU."""
    found = [re.search(r"Total Activation Memory: (\d+) bytes", line) for line in info]
    sizes = [int(match[1]) for match in found if match]
    if not sizes:
        raise BuildError("TensorRT no longer logs the plan's activation memory", "a 'Total Activation Memory' line")
    return max(sizes)
