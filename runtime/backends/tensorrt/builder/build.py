"""An artifact's plans: which to build, which are there already, and the engine.json that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltart.artifact import load_manifest, read_graph
from deltart.errors import ArtifactError, BuildError
from deltart.manifest import SEEING, Manifest
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import Activations, EngineManifest, Flavour, LmHead
from deltart.runtime.backends.gpu.limits import MAX_CHUNK, MAX_SLOTS
from deltart.runtime.backends.native.builder.lm_head import quantized_head, with_fp8_head
from deltart.runtime.backends.tensorrt.builder.compile import Log, Progress
from deltart.runtime.backends.tensorrt.builder.makers import plan_maker
from deltart.runtime.backends.tensorrt.builder.precision import can_quantize, with_activations
from deltart.runtime.backends.tensorrt.builder.store import engine_store

CHUNK, LONG_CHUNK = 1024, 4096  # E4M3 products are so fast that short pieces would be bound by reading weights


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Args:
        flavour: None for the installed TensorRT's.
        gpus: compute capabilities ("sm_89") of one plan, for "rtx", or makers.PRESENT_GPU alone; None for the usual.
            "tensorrt" builds for the present GPU, "native" for any.
        slots: sequences decoded together.
        max_context: longest sequence, in tokens; the artifact's when None.
        chunk: tokens of a prefill call; None for CHUNK, or LONG_CHUNK where activations may be rounded.
        prefill_activations: "fp8" rounds the activations of prefill's block-FP8 linears to E4M3 (W8A8), "auto" on GPUs
            that multiply E4M3, sm_89 and later; decode and speculation take them as they are, and so does a model
            without such linears.
        lm_head: "fp8" has the LM head rounded to E4M3 when the engine is loaded; native plans alone can read it.
        cache: folder of plans that artifacts share; None keeps them in the artifact alone.
        plugins: the C++ plugin library; None for the Python plugin classes.
    """

    flavour: Flavour | None = None
    gpus: tuple[str, ...] | None = None
    slots: int = 1
    max_context: int | None = None
    chunk: int | None = None
    prefill_activations: Activations = "auto"
    lm_head: LmHead = "bf16"
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
        ArtifactError: the artifact is incomplete or was not lowered for this flavour.
        BuildError: the options fit no plan, or the graph is refused; nothing is left under a final name.
        MissingDependencyError: TensorRT or the plugin library is not there.
    """
    manifest = load_manifest(artifact)
    context = _context(options, manifest)
    maker = plan_maker(options.flavour, options.plugins)
    gpus = maker.served(options.gpus)
    if options.lm_head != "bf16" and maker.flavour != "native":
        raise BuildError(f"--lm-head {options.lm_head} with --flavour {maker.flavour}", "bf16", "--flavour native")
    jobs = []
    graphs, heads = _lowered(artifact, manifest, maker.target), dict[str, str]()
    activations = _activations(options, graphs)
    chunk = options.chunk or min(CHUNK if activations == "bf16" else LONG_CHUNK, max(context, CHUNK))
    sees = manifest.vision is not None and manifest.vision.graph in graphs
    for graph, content in graphs.items():
        entry = manifest.graphs[graph]
        if manifest.vision is not None and graph == manifest.vision.graph:
            profile = plans.frame_profile(manifest.vision)
            jobs.append(maker.job(graph, entry, plans.FRAME, gpus, profile, content))
            continue
        if options.lm_head == "fp8":
            content, entry, heads[graph] = with_fp8_head(content, entry)
        for phase in plans.PHASES:
            profile = plans.profile(phase, options.slots, context, chunk)
            if phase == "prefill" and sees:
                content, profile = read_graph(artifact, manifest, graph, SEEING), plans.seeing_profile(profile)
            if phase == "prefill":
                content = with_activations(content, activations)
            jobs.append(maker.job(graph, entry, phase, gpus, profile, content))
    versions = {"deltart": manifest.versions.get("deltart", ""), **maker.versions}
    with engine_store(artifact, maker.flavour, options.cache, log) as store:
        result = EngineManifest(
            flavour=maker.flavour,
            slots=options.slots,
            max_context=context,
            chunk=chunk,
            prefill_activations=activations,
            plans={job.name: store.obtain(job, log, progress) for job in jobs},
            command=command,
            versions=versions,
            lm_head=quantized_head(artifact, manifest, heads) if heads else None,
        )
        store.commit(result)
    return result


def _lowered(artifact: Path, manifest: Manifest, target: str) -> dict[str, bytes]:
    """The lowered graphs by name."""
    graphs = manifest.graphs_on(target)
    for graph, entry in graphs.items():
        if target not in entry.files:
            raise ArtifactError(
                f"{artifact} has no '{target}' graph of '{graph}'", hint="run `deltart build`, which adds it"
            )
    return {graph: read_graph(artifact, manifest, graph, target) for graph in graphs}


def _activations(options: BuildOptions, graphs: Mapping[str, bytes]) -> Activations:
    """What is asked for, as far as the model has block-FP8 linears."""
    asked = options.prefill_activations
    if asked == "bf16" or any(map(can_quantize, graphs.values())):
        return asked
    if asked == "fp8":
        raise BuildError(
            "--prefill-activations fp8 without a block-FP8 weight", "bf16", "calibrate the checkpoint first"
        )
    return "bf16"


def _context(options: BuildOptions, manifest: Manifest) -> int:
    context = manifest.max_context if options.max_context is None else options.max_context
    if not 1 <= context <= manifest.max_context:
        raise BuildError(f"--max-context {context}", f"1 to {manifest.max_context}, the artifact's limit")
    for name, value, limit in (("slots", options.slots, MAX_SLOTS), ("chunk", options.chunk, MAX_CHUNK)):
        if value is not None and not 1 <= value <= limit:
            raise BuildError(f"--{name} {value}", f"1 to {limit}")
    return context
