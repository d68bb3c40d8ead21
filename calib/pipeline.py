"""BF16 checkpoint folder in, quantized checkpoint folder and report out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deltart.calib import layout, page, report, side_scales
from deltart.calib.dataset import Dataset, read_dataset, spread
from deltart.calib.evaluate import evaluate, layers_of
from deltart.calib.experts import merged, unfused
from deltart.calib.figures import WeightFigures, by_layer
from deltart.calib.formats import FP8, Format
from deltart.calib.forward import store
from deltart.calib.memory import release
from deltart.calib.observe import BlockStatistics, Statistics
from deltart.calib.progress import Log, Progress
from deltart.calib.quantize import Method, Result, quantize
from deltart.calib.report import CalibrationReport
from deltart.calib.selection import Selection, Site, cache_modules, candidates, select
from deltart.calib.sensitivity import sensitivities
from deltart.calib.sizes import part_sizes
from deltart.calib.staging import Staging, staged
from deltart.calib.variants import Variant, lower_variants
from deltart.errors import CalibrationError, CheckpointError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.structure import settle
from deltart.export.weights import load_tensor, read_tensor
from deltart.json_files import read_json
from deltart.safetensors import INDEX, TensorInfo
from deltart.staging import sha256_of
from deltart.version import __version__

EVALUATED_TOKENS, RANKED_TOKENS = 8192, 1024
STREAMED_TOKENS = 16384  # of the ranking, over all sites


@dataclass(frozen=True)
class _Job:
    """What one calibration works on."""

    spec: ModelSpec
    tensors: Checkpoint
    sources: Mapping[str, TensorInfo]  # where each weight lies, fused experts one by one
    candidates: list[Site]
    selection: Selection
    form: Format
    method: Method
    dataset: Dataset | None


def calibrate(
    checkpoint: Path,
    output: Path,
    *,
    method: Method = "hessian",
    form: Format = FP8,
    data: Path | None = None,
    kv_cache: bool = False,
    activations: bool = False,
    modules: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    budget: float | None = None,
    statistics: Path | None = None,
    log: Log = lambda line: None,
) -> CalibrationReport:
    """Quantize `checkpoint` into the new folder `output`, with report.html and report.json.

    Embedding, head, norms, convolutions, routers, gates of a and b, and the vision tower stay as they are.

    A run that was killed goes on where it was when started again with the same arguments, and ends with the same
    bytes as one that was not.

    Args:
        method: scales by absmax (the vendor's way), by least squared error of the weights (with text, each weighted
            by its input's second moment), or rounding for the least output error. Routed experts are quantized from
            their weights alone, for the least error by mse's scales. With text, the better of a method
            and those before it is taken for every 128 rows, by the output error on text set aside.
        form: what the linears become: the vendor's FP8, or int4 in groups as compressed-tensors packs them.
        data: JSON lines of text (see read_dataset); "hessian", `kv_cache` and `activations` need it. With text the
            report measures the outputs of layers and model, without it the weights alone.
        kv_cache: write the scales of an FP8 KV cache: per layer into the checkpoint, per head into a JSON file too.
        activations: write activation_scales.json, one static scale per input (see side_scales).
        modules: what to quantize; everything the vendor does when None (see selection.select).
        keep: what of it to leave in BF16.
        budget: loss in nats of KL for which the report says what to keep; it does so for shares of the loss anyway.
        statistics: folder that keeps the inputs' statistics for other runs; they are deleted when None.
        log: called with a line for every step.

    Raises:
        ConfigError, CheckpointError: the input is broken, unsupported or already quantized, or holds what the format
            can't.
        CalibrationError: the text is unusable or missing, or the output can't be written.
        OutputError: the output is in use.
    """
    if data is None and (method == "hessian" or kv_cache or activations or budget is not None):
        raise CalibrationError("no calibration text given", "--data FILE or --data default", "absmax and mse need none")
    if not form.activations and (kv_cache or activations):
        asked = "scales of an FP8 KV cache" if kv_cache else "scales of FP8 activations"
        raise CalibrationError(f"{asked}, with {form.name} weights", "FP8 weights", "use --format fp8")
    spec, tensors = _open(checkpoint)
    sites = list(candidates(spec, tensors))
    sources = unfused(tensors)
    selection = select(sites, sources, modules, keep, form)
    dataset = read_dataset(data, checkpoint, spec.vocab_size) if data else None
    job = _Job(spec, tensors, sources, sites, selection, form, method, dataset)
    caches = cache_modules(sites) if kv_cache else []
    files = layout.plan_files(tensors, selection, "BF16", caches, form)
    with staged(output, files, _order(job, caches), form) as staging:
        linears = f"{len(selection.modules)} linears of {len(tensors)} tensors to {form.name}"
        log(f"{linears} by {method}; {len(staging.done)} done before")
        notes = _quantize_all(job, staging, statistics, log)
        log("copying what stays as it is")
        staging.copy_rest(tensors.folder, tensors)
        _write_side_files(job, staging)
        if kv_cache:
            _write_json(staging.folder / side_scales.KV_FILE, side_scales.kv_scales(notes))
            for name, value in side_scales.cache_tensors(notes).items():
                staging.write_scalar(name, value)
        if activations:
            _write_json(staging.folder / side_scales.ACTIVATION_FILE, side_scales.activation_scales(notes))
        result = _report(job, notes, staging, budget, log)
        report.write(result, staging.folder)
        page.write(result, staging.folder)
    return result


def _open(checkpoint: Path) -> tuple[ModelSpec, Checkpoint]:
    quantization = read_json(checkpoint / "config.json").get("quantization_config")
    if quantization is not None:
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{checkpoint} is already quantized (quant_method '{kind}')",
            "a BF16, F16 or F32 checkpoint",
            "calibrate the original; FP8 block-128 and packed int4 checkpoints export as they are",
        )
    spec = read_spec(checkpoint)
    tensors = Checkpoint(checkpoint)
    model = bind(spec, tensors)
    ledger_of(model)
    return model.spec, tensors


def _order(job: _Job, caches: Sequence[str]) -> dict[str, Any]:
    """What determines the output's bytes; the names are for people."""
    tensors = job.tensors
    stamps = [(tensors.folder / file.name).stat().st_mtime_ns for file in tensors.files]
    return {
        "checkpoint": [[asdict(file), stamp] for file, stamp in zip(tensors.files, stamps, strict=True)],
        "--format or --group": job.form.name,
        "--method": job.method,
        "text": job.dataset.sha256 if job.dataset else None,
        "--modules or --keep": job.selection.modules,
        "--kv-cache": bool(caches),
        "version of deltart": __version__,
    }


def _quantize_all(job: _Job, staging: Staging, statistics: Path | None, log: Log) -> dict[str, Any]:
    """Quantize layer by layer what the journal lacks; returns the notes of each layer by its name."""
    sizes = {m: job.sources[f"{m}.weight"].nbytes for m in job.selection.modules if m not in staging.done}
    progress = Progress(f"1/{3 if job.dataset else 1} quantizing", sum(sizes.values()), log)
    with staging.in_background() as write:
        for key, found in _statistics(job, staging, statistics):
            for site in (site for site in job.selection.sites if site.block == key):
                for module, quantized, figures in _quantized(job, staging, site, found):
                    write(module, quantized, asdict(figures))
                    progress.advance(sizes[module], module)
            write.wait()
            if found:
                store(_importance_file(staging, key), {name: own.importance for name, own in found.inputs.items()})
                staging.note(key, side_scales.note(found))
            del found  # or it stays in memory while the next layer runs
    return {site.block: staging.done.get(site.block) for site in job.candidates}


def _quantized(job: _Job, staging: Staging, site: Site, found: BlockStatistics | None) -> Iterator[Result]:
    """What the journal lacks of the weights that read one input."""
    left = [module for module in site.modules if module not in staging.done]
    if site.routed:  # from the weights alone, one in memory at a time
        for module in left:
            weight = read_tensor(job.tensors, job.sources[f"{module}.weight"])
            yield from quantize({module: weight}, job.method, None, job.form.grid)
    else:
        weights = {module: load_tensor(job.tensors, f"{module}.weight") for module in left}
        yield from quantize(weights, job.method, found.inputs[site.modules[0]] if found else None, job.form.grid)
        del weights
    release()


def _statistics(job: _Job, staging: Staging, kept: Path | None) -> Iterator[tuple[str, BlockStatistics | None]]:
    """Layers that lack a weight or their note, each with its statistics if there is text."""
    wanted = {site.block for site in job.selection.sites if not staging.done.keys() >= set(site.modules)}
    if job.dataset is None:
        for key in dict.fromkeys(site.block for site in job.selection.sites if site.block in wanted):
            yield key, None
        return
    complete = {key for key in staging.done if _importance_file(staging, key).exists()}
    wanted |= {site.block for site in job.candidates} - complete
    source = {"files": [asdict(file) for file in job.tensors.files], "data": job.dataset.sha256}
    folder = Statistics(kept or staging.work / "statistics", source, transient=kept is None)
    watched = [site for site in job.candidates if not site.routed]
    yield from folder.gather(job.spec, job.tensors, job.dataset, watched, wanted)


def _write_side_files(job: _Job, staging: Staging) -> None:
    for path in layout.side_files(job.tensors.folder, job.tensors):
        staging.bring(path)
    _write_json(staging.folder / "config.json", layout.output_config(job.tensors, job.selection, job.form))
    if layout.has_index(job.tensors):
        _write_json(staging.folder / INDEX, layout.weight_map(staging.files, job.tensors))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _report(job: _Job, notes: dict[str, Any], staging: Staging, budget: float | None, log: Log) -> CalibrationReport:
    weights = {module: WeightFigures(**staging.done[module]) for module in job.selection.modules}
    layers: dict[str, list[str]] = {}
    for site in job.selection.sites:
        layers.setdefault(site.block, []).extend(site.modules)
    result = CalibrationReport(
        format=job.form.name,
        method=job.method,
        kept=job.selection.kept,
        weights=merged(weights),
        layers=by_layer(weights, layers),
        inputs=side_scales.input_peaks(notes) if job.dataset else {},
        sizes=part_sizes(job.spec, job.tensors, Checkpoint(staging.folder), job.selection.modules, job.selection.kept),
        files={file.name: sha256_of(staging.folder / file.name) for file in staging.files},
        data=job.dataset.sha256 if job.dataset else None,
        tokens=job.dataset.tokens if job.dataset else {},
        budget=budget,
    )
    if job.dataset is not None:
        _compare(job, job.dataset, staging, result, log)
    return result


def _compare(job: _Job, dataset: Dataset, staging: Staging, result: CalibrationReport, log: Log) -> None:
    """Fill in what the held-out text shows."""
    original = Variant("original", job.spec, job.tensors)
    tensors = Checkpoint(staging.folder)
    written = Variant(job.method, settle(read_spec(staging.folder), tensors).spec, tensors)

    def importance(key: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(_importance_file(staging, key), weights_only=True)
        return found

    ranked_sites = [site for site in job.selection.sites if not site.routed]
    lower = lower_variants(original, job.selection, job.method, job.form, importance, lambda m: result.weights[m].picks)
    if len(ranked_sites) < len(job.selection.sites):
        lower = []  # plainer methods would have written other experts, which were not kept
    count = len(layers_of(job.spec))
    rows = spread(dataset.held_out, EVALUATED_TOKENS)
    tokens = min(RANKED_TOKENS, STREAMED_TOKENS // max(1, len(ranked_sites)))
    ranked = spread([row[:tokens] for row in dataset.held_out], tokens)
    comparing = Progress("2/3 comparing", count, log)
    result.perplexity, result.agreement = evaluate(original, [written, *lower], rows, comparing)
    ranking = Progress("3/3 ranking", count, log)
    result.ranking = sensitivities(original, written.tensors, job.form, ranked_sites, ranked, ranking)


def _importance_file(staging: Staging, key: str) -> Path:
    """Second moments of a layer's inputs: of its statistics, what the comparison needs."""
    return staging.work / f"{key}.importance.pt"
