"""An artifact's TensorRT plans: which to build, which are there already, and the engine.json that describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltart.artifact import load_manifest, read_graph
from deltart.errors import ArtifactError, BuildError
from deltart.manifest import Manifest
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.cuda import device_name
from deltart.runtime.backends.gpu.engine_manifest import Activations, EngineManifest, Flavour
from deltart.runtime.backends.tensorrt.builder.compile import Log, Progress
from deltart.runtime.backends.tensorrt.builder.job import Job
from deltart.runtime.backends.tensorrt.builder.precision import can_quantize, with_activations
from deltart.runtime.backends.tensorrt.builder.store import engine_store
from deltart.runtime.backends.tensorrt.library import TensorRt, load_tensorrt

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
            speculation take them as they are.
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
    log: Log = lambda line: None,
    progress: Progress = lambda share: None,
) -> EngineManifest:
    """Build the plans of every graph and phase, or take those that exist with the same key.

    Args:
        command: what the user ran, for the record.
        log: takes a line for each plan that is begun, found or done.
        progress: takes the share that is done of the plan being built.

    Raises:
        ArtifactError: the artifact is incomplete or was not lowered for TensorRT.
        BuildError: the options fit no plan, or TensorRT refuses the graph; nothing is left under a final name.
        MissingDependencyError: TensorRT or the plugin library is not there.
    """
    manifest = load_manifest(artifact)
    context = _context(options, manifest)
    library = load_tensorrt(options.flavour, options.plugins)
    gpus = _gpus(library, options.gpus)
    jobs = []
    for graph, content in _lowered(artifact, manifest, options).items():
        for phase in plans.PHASES:
            if phase == "prefill":
                content = with_activations(content, options.prefill_activations)
            profile = plans.profile(phase, options.slots, context, options.chunk)
            jobs.append(Job(library, graph, manifest.graphs[graph], phase, gpus, profile, content))
    versions = {"deltart": manifest.versions.get("deltart", ""), library.trt.__name__: library.version}
    with engine_store(artifact, library.flavour, options.cache, log) as store:
        result = EngineManifest(
            flavour=library.flavour,
            slots=options.slots,
            max_context=context,
            chunk=options.chunk,
            prefill_activations=options.prefill_activations,
            plans={job.name: store.obtain(job, log, progress) for job in jobs},
            command=command,
            versions=versions,
        )
        store.commit(result)
    return result


def _lowered(artifact: Path, manifest: Manifest, options: BuildOptions) -> dict[str, bytes]:
    """The lowered graphs by name."""
    for graph, entry in manifest.text_graphs.items():
        if TARGET not in entry.files:
            raise ArtifactError(
                f"{artifact} has no '{TARGET}' graph of '{graph}'", hint="run `deltart build`, which adds it"
            )
    contents = {graph: read_graph(artifact, manifest, graph, TARGET) for graph in manifest.text_graphs}
    if options.prefill_activations != "bf16" and not any(map(can_quantize, contents.values())):
        raise BuildError(
            "--prefill-activations fp8 without a block-FP8 weight", "bf16", "calibrate the checkpoint first"
        )
    return contents


def _context(options: BuildOptions, manifest: Manifest) -> int:
    context = manifest.max_context if options.max_context is None else options.max_context
    if not 1 <= context <= manifest.max_context:
        raise BuildError(f"--max-context {context}", f"1 to {manifest.max_context}, the artifact's limit")
    for name, value, limit in (("slots", options.slots, plans.MAX_SLOTS), ("chunk", options.chunk, plans.MAX_CHUNK)):
        if not 1 <= value <= limit:
            raise BuildError(f"--{name} {value}", f"1 to {limit}")
    return context


def _gpus(library: TensorRt, asked: tuple[str, ...]) -> tuple[str, ...]:
    if library.flavour != "rtx" or asked == (PRESENT_GPU,):
        return (device_name(),)
    known = [f"sm_{n[2:]}" for n in library.trt.ComputeCapability.__members__ if n.startswith("SM")]
    unknown = [gpu for gpu in asked if gpu not in known]
    if unknown or not asked:
        raise BuildError(
            f"--gpu {' '.join(unknown)}",
            f"some of {', '.join(known)}, or {PRESENT_GPU} alone for the GPU of this machine",
            "for another GPU, run `deltart build --flavour tensorrt` on a machine that has it",
        )
    return asked
