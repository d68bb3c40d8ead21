"""An artifact's TensorRT plans: which to build, which are there already, and the engine.json that describes them."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deltart.errors import ArtifactError, BuildError
from deltart.files import clear, link_or_copy, write_atomically
from deltart.manifest import GraphEntry, Manifest, load_manifest
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.cuda import device_name
from deltart.runtime.backends.gpu.engine_manifest import Activations, EngineManifest, Flavour, PlanEntry, Profile
from deltart.runtime.backends.tensorrt.builder.compile import Progress, Report, compile_plan
from deltart.runtime.backends.tensorrt.builder.precision import can_quantize, with_activations
from deltart.runtime.backends.tensorrt.caches import TimingCache, cache_path
from deltart.runtime.backends.tensorrt.library import Library, load_library

TARGET = "tensorrt"
DEFAULT_GPUS = ("sm_80", "sm_89", "sm_120")
PRESENT_GPU = "current"


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Args:
        flavour: None for the installed one.
        gpus: compute capabilities ("sm_89") of one plan, for "rtx", or PRESENT_GPU alone; "tensorrt" builds for the
            present GPU.
        slots: sequences decoded together.
        max_context: longest sequence, in tokens; the artifact's when None.
        chunk: tokens of a prefill call.
        prefill_activations: "fp8" rounds the activations of prefill's block-FP8 linears to E4M3 (W8A8); decode and
            verify take them as they are.
        cache: folder of plans that artifacts share; None keeps them in the artifact alone.
        plugins: the C++ plugin library; None for the Python plugin classes.
    """

    flavour: Flavour | None = None
    gpus: tuple[str, ...] = DEFAULT_GPUS
    slots: int = 1
    max_context: int | None = None
    chunk: int = 1024
    prefill_activations: Activations = "bf16"
    cache: Path | None = None
    plugins: Path | None = None


def build_engine(
    artifact: Path,
    options: BuildOptions,
    command: str = "",
    report: Report = lambda line: None,
    progress: Progress = lambda share: None,
) -> EngineManifest:
    """Build the plans of every graph and phase, or take those that exist with the same key.

    Args:
        command: what the user ran, for the record.
        report: takes a line for each plan that is begun, found or done.
        progress: takes the share that is done of the plan being built.

    Raises:
        ArtifactError: the artifact is incomplete or was not lowered for TensorRT.
        BuildError: the options fit no plan, or TensorRT refuses the graph; nothing is left under a final name.
        MissingDependencyError: TensorRT or the plugin library is not there.
    """
    manifest = load_manifest(artifact)
    context = _context(options, manifest)
    library = load_library(options.flavour, options.plugins)
    gpus = _gpus(library, options.gpus)
    folder = plans.engine_folder(artifact, library.flavour)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (artifact, folder, *([options.cache] if options.cache else [])):
        clear(place)  # what killed builds left
    built = {}
    for graph, content in _lowered(artifact, manifest, options).items():
        entry = manifest.graphs[graph]
        for phase in plans.PHASES:
            if phase == "prefill":
                content = with_activations(content, options.prefill_activations)
            profile = plans.profile(phase, options.slots, context, options.chunk)
            job = Job(library, graph, entry, phase, gpus, profile, content)
            built[job.name] = obtain(job, folder, options.cache, report, progress)
    versions = {"deltart": manifest.versions.get("deltart", ""), library.trt.__name__: library.version}
    result = EngineManifest(
        flavour=library.flavour,
        slots=options.slots,
        max_context=context,
        chunk=options.chunk,
        prefill_activations=options.prefill_activations,
        plans=built,
        command=command,
        versions=versions,
    )
    result.save(folder)
    return result


@dataclass(frozen=True)
class Job:
    """One plan to have: `content` is the lowered graph, `entry` what the manifest says of it."""

    library: Library
    graph: str
    entry: GraphEntry
    phase: str
    gpus: tuple[str, ...]
    profile: Profile
    content: bytes

    @property
    def name(self) -> str:
        """Graph and phase, as in "model.decode" of engine.json."""
        return f"{self.graph}.{self.phase}"

    @property
    def onnx_sha256(self) -> str:
        """Hash of the lowered graph."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def key(self) -> str:
        """Name of the plan in caches."""
        library = self.library
        return plans.plan_key(
            self.onnx_sha256, library.flavour, library.version, self.gpus, self.profile, library.plugin_code
        )


def _lowered(artifact: Path, manifest: Manifest, options: BuildOptions) -> dict[str, bytes]:
    """The lowered graphs by name."""
    for graph, entry in manifest.graphs.items():
        if TARGET not in entry.files:
            raise ArtifactError(
                f"{artifact} has no '{TARGET}' graph of '{graph}'", hint="'deltart build' adds it; or lower_artifact"
            )
    contents = {graph: (artifact / entry.files[TARGET]).read_bytes() for graph, entry in manifest.graphs.items()}
    if options.prefill_activations != "bf16" and not any(map(can_quantize, contents.values())):
        raise BuildError(
            "--prefill-activations fp8 without a block-FP8 weight", "bf16", "calibrate the checkpoint first"
        )
    return contents


def _context(options: BuildOptions, manifest: Manifest) -> int:
    context = manifest.max_context if options.max_context is None else options.max_context
    if not 1 <= context <= manifest.max_context:
        raise BuildError(f"--max-context {context}", f"1 to {manifest.max_context}, the artifact's limit")
    if options.slots < 1 or options.chunk < 1:
        raise BuildError(f"{options.slots} slots and chunks of {options.chunk}", "at least one of each")
    return context


def _gpus(library: Library, asked: tuple[str, ...]) -> tuple[str, ...]:
    if library.flavour != "rtx" or asked == (PRESENT_GPU,):
        return (device_name(),)
    known = [f"sm_{n[2:]}" for n in library.trt.ComputeCapability.__members__ if n.startswith("SM")]
    unknown = [gpu for gpu in asked if gpu not in known]
    if unknown or not asked:
        raise BuildError(
            f"--gpu {' '.join(unknown)}",
            f"some of {', '.join(known)}, or {PRESENT_GPU} alone for this machine's",
            "full TensorRT serves other GPUs",
        )
    return asked


def obtain(job: Job, folder: Path, cache: Path | None, report: Report, progress: Progress) -> PlanEntry:
    """The plan under its name in `folder`: already there, linked from `cache`, or built into both."""
    target = folder / f"{job.name}.plan"
    entry = _recorded(target, job.key)
    if entry is not None:
        report(f"{job.name}: up to date ({entry.nbytes / 1e6:.1f} MB)")
        return entry
    source = target if cache is None else cache / f"{job.key}.plan"
    entry = _recorded(source, job.key)
    if entry is not None:
        report(f"{job.name}: taken from the cache ({entry.nbytes / 1e6:.1f} MB)")
    else:
        source.parent.mkdir(parents=True, exist_ok=True)
        entry = _build(job, source, report, progress)
    if source != target:
        link_or_copy(source, target)
        _record(target, entry)
    return entry


def _build(job: Job, target: Path, report: Report, progress: Progress) -> PlanEntry:
    report(f"{job.name}: building for {' '.join(job.gpus)}")
    began = time.monotonic()
    timings = None
    if job.library.flavour == "tensorrt":
        timings = TimingCache(cache_path(target.parent, "timings", "cache", *job.gpus, job.library.version))
    made = compile_plan(job.library, job.content, job.gpus, job.profile, progress, timings)
    entry = PlanEntry(
        file=f"{job.name}.plan",
        graph=job.graph,
        phase=job.phase,
        key=job.key,
        sha256=hashlib.sha256(made.plan).hexdigest(),
        nbytes=made.plan.nbytes,
        flavour=job.library.flavour,
        library=job.library.version,
        gpus=list(job.gpus),
        profile=job.profile,
        bindings=plans.bindings(job.entry, made.bindings),
        plugins=made.plugins,
        onnx_sha256=job.onnx_sha256,
        scratch_bytes=made.scratch_bytes,
        seconds=round(time.monotonic() - began, 2),
    )
    write_atomically(target, made.plan)
    _record(target, entry)
    sizes = f"{entry.nbytes / 1e6:.1f} MB, scratch {entry.scratch_bytes / 1e6:.1f} MB"
    report(f"{job.name}: {sizes}, in {entry.seconds:.0f} s")
    return entry


def _record(plan: Path, entry: PlanEntry) -> None:
    write_atomically(plan.with_suffix(".json"), (json.dumps(asdict(entry), indent=1) + "\n").encode())


def _recorded(plan: Path, key: str) -> PlanEntry | None:
    """The entry beside a finished plan of this key; None where there is none or the file is not that plan."""
    with suppress(OSError, KeyError, TypeError, json.JSONDecodeError):
        entry = plans.plan_entry(json.loads(plan.with_suffix(".json").read_text(encoding="utf-8")))
        if entry.key == key and hashlib.sha256(plan.read_bytes()).hexdigest() == entry.sha256:
            return entry
    return None
