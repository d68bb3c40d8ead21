"""BF16 checkpoint folder in, block-128 FP8 checkpoint folder and report out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import deltart
from deltart.calib import layout, report
from deltart.calib.compensate import compensate
from deltart.calib.dataset import Dataset, read_dataset
from deltart.calib.errors import CalibrationError
from deltart.calib.evaluate import Variant, evaluate, sensitivities
from deltart.calib.figures import WeightFigures, measure
from deltart.calib.forward import Step
from deltart.calib.layout import Selection, Site
from deltart.calib.observe import BlockStatistics, InputStatistics, Statistics
from deltart.calib.report import Report
from deltart.calib.scales import E4M3_MAX, Quantized, absmax, one_thread, search
from deltart.calib.staging import Staging, link_or_copy, sha256_of, staged
from deltart.errors import CheckpointError
from deltart.export.checkpoint import INDEX, Checkpoint
from deltart.export.config_fields import read_json
from deltart.export.pipeline import account
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.weights import TORCH_DTYPES

Method = Literal["absmax", "mse", "hessian"]
KV_SCALES, ACTIVATION_SCALES = "kv_cache_scales.json", "activation_scales.json"
EVALUATED_TOKENS, RANKED_TOKENS = 8192, 1024
Say = Callable[[str], None]


def calibrate(
    checkpoint: Path,
    output: Path,
    *,
    method: Method = "hessian",
    data: Path | None = None,
    kv_cache: bool = False,
    activations: bool = False,
    modules: Sequence[str] | None = None,
    statistics: Path | None = None,
    say: Say = lambda line: None,
) -> Report:
    """Quantize `checkpoint` into the new folder `output`, in the vendor's layout, with report.html and report.json.

    A run that was killed goes on where it was when started again with the same arguments, and ends with the same
    bytes as one that was not.

    Args:
        method: scales by absmax (the vendor's way), by least squared error of the weights (with text, each weighted
            by its input's second moment), or rounding for the least output error.
        data: JSON lines of text (see read_dataset); "hessian", `kv_cache` and `activations` need it. With text the
            report measures the outputs of layers and model, without it the weights alone.
        kv_cache: write kv_cache_scales.json, per layer and per head.
        activations: write activation_scales.json, one static scale per input (see _activation_scales).
        modules: what to quantize; everything the vendor does when None (see layout.select).
        statistics: folder that keeps the inputs' statistics for other runs; they are deleted when None.
        say: called with a line for every step.

    Raises:
        ConfigError, CheckpointError: the input is broken, unsupported or already quantized.
        CalibrationError: the text is unusable or missing, or the output can't be written; nothing is left of it.
    """
    spec, tensors = _open(checkpoint)
    candidates = list(layout.candidates(spec, tensors))
    selection = layout.select(candidates, tensors, modules)
    if data is None and (method == "hessian" or kv_cache or activations):
        raise CalibrationError("no calibration text given", "--data FILE or --data default", "absmax and mse need none")
    dataset = read_dataset(data, checkpoint, spec.vocab_size) if data else None
    order = _order(tensors, method, dataset, modules)
    with staged(output, layout.plan_files(tensors, selection, "BF16"), order) as staging:
        say(f"{len(selection.modules)} linears of {len(tensors)} tensors by {method}; {len(staging.done)} done before")
        notes = _quantize_all(spec, tensors, candidates, selection, method, dataset, staging, statistics, say)
        say("copying what stays as it is")
        staging.copy_rest(tensors)
        _write_side_files(tensors, selection, staging)
        if kv_cache:
            _write_json(staging.folder / KV_SCALES, _kv_scales(notes))
        if activations:
            _write_json(staging.folder / ACTIVATION_SCALES, _activation_scales(notes))
        result = _report(spec, tensors, selection, method, dataset, staging, say)
        report.write(result, staging.folder)
    return result


def _open(checkpoint: Path) -> tuple[ModelSpec, Checkpoint]:
    quantization = read_json(checkpoint / "config.json").get("quantization_config")
    if quantization is not None:
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{checkpoint} is already quantized (quant_method '{kind}')",
            "a BF16, F16 or F32 checkpoint",
            "calibrate the original; an FP8 block-128 checkpoint exports as it is",
        )
    spec = read_spec(checkpoint)
    if spec.moe is not None:
        raise CalibrationError(
            f"{spec.architecture} has no graph yet", "a dense Qwen3.5/3.6 model", "use the vendor's FP8 release"
        )
    tensors = Checkpoint(checkpoint)
    account(spec, tensors)
    return spec, tensors


def _order(
    tensors: Checkpoint, method: Method, dataset: Dataset | None, modules: Sequence[str] | None
) -> dict[str, Any]:
    """What determines the output's bytes."""
    stamps = [(tensors.folder / file.name).stat().st_mtime_ns for file in tensors.files]
    return {
        "files": [asdict(file) for file in tensors.files],
        "modified": stamps,
        "method": method,
        "data": dataset.sha256 if dataset else None,
        "modules": None if modules is None else list(modules),
        "version": deltart.__version__,
    }


def _quantize_all(
    spec: ModelSpec, tensors: Checkpoint, candidates: Sequence[Site], selection: Selection, method: Method,
    dataset: Dataset | None, staging: Staging, statistics: Path | None, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Quantize layer by layer what the journal lacks; returns the notes of each layer by its name."""
    progress = _Progress(tensors, [m for m in selection.modules if m not in staging.done], say)
    for key, found in _statistics(spec, tensors, candidates, selection, dataset, staging, statistics):
        for site in (site for site in selection.sites if site.block == key):
            inputs = found.inputs[site.modules[0]] if found else None
            for module in (module for module in site.modules if module not in staging.done):
                quantized, figures = _quantize(tensors, module, method, inputs)
                staging.write(module, quantized, asdict(figures))
                progress.advance(module)
        if found:
            staging.note(key, _note(key, found))
    return {site.block: staging.done.get(site.block) for site in candidates}


def _statistics(
    spec: ModelSpec, tensors: Checkpoint, sites: Sequence[Site], selection: Selection, dataset: Dataset | None,
    staging: Staging, kept: Path | None,
) -> Iterator[tuple[str, BlockStatistics | None]]:  # fmt: skip
    """Layers that lack a weight or their note, each with its statistics if there is text."""
    wanted = {site.block for site in selection.sites if not staging.done.keys() >= set(site.modules)}
    if dataset is None:
        yield from ((key, None) for key in dict.fromkeys(site.block for site in selection.sites) if key in wanted)
        return
    wanted |= {site.block for site in sites if site.block not in staging.done}
    source = {"files": [asdict(file) for file in tensors.files], "data": dataset.sha256}
    folder = Statistics(kept or staging.work / "statistics", source, transient=kept is None)
    yield from folder.gather(spec, tensors, dataset.calibration, sites, wanted)


def _quantize(
    tensors: Checkpoint, module: str, method: Method, inputs: InputStatistics | None
) -> tuple[Quantized, WeightFigures]:
    weight = _read(tensors, f"{module}.weight")
    try:
        if method == "hessian" and inputs is not None:
            quantized = compensate(weight, inputs.moments, inputs.tokens)
            return quantized, measure(weight, quantized, inputs)
        with one_thread():
            quantized = absmax(weight) if method == "absmax" else search(weight, inputs.importance if inputs else None)
            return quantized, measure(weight, quantized, inputs)
    except ValueError as error:
        raise CheckpointError(
            f"tensor '{module}.weight' {error}", "finite weights", "the checkpoint is damaged: get it again"
        ) from None


def _read(tensors: Checkpoint, name: str) -> torch.Tensor:
    """One tensor in its stored dtype, read into memory."""
    info = tensors[name]
    raw = np.fromfile(tensors.folder / info.file, np.uint8, info.nbytes, offset=info.offset)
    return torch.from_numpy(raw).view(TORCH_DTYPES[info.dtype]).view(info.shape)


def _note(key: str, found: BlockStatistics) -> dict[str, Any]:
    kv = asdict(found.kv) if found.kv else None
    return {"kv": kv, "inputs": {name: inputs.amax for name, inputs in found.inputs.items()}}


def _kv_scales(notes: dict[str, Any]) -> dict[str, Any]:
    """Dequantization scales of an E4M3 KV cache, k after norm and RoPE: per head, and per layer as their largest."""
    scales = {}
    for key, note in notes.items():
        if note["kv"]:
            heads = {kind: [peak / E4M3_MAX for peak in peaks] for kind, peaks in note["kv"].items()}
            scales[f"{key}.self_attn"] = {kind: {"layer": max(own), "heads": own} for kind, own in heads.items()}
    return scales


def _activation_scales(notes: dict[str, Any]) -> dict[str, float]:
    """Static per-tensor scales (largest |x| on the calibration text / 448) by the module that reads the input.

    Prefer dynamic scales, which config.json asks for: one static scale must leave room for the few tokens and
    channels that are hundreds of times larger than the rest, it saturates on inputs beyond the calibration text,
    and it saves nothing where activations stay in BF16 (decode) or their amax rides along with the previous
    kernel (prefill). Static scales are for hardware that has no per-token path.
    """
    return {name: amax / E4M3_MAX for note in notes.values() for name, amax in note["inputs"].items()}


def _write_side_files(tensors: Checkpoint, selection: Selection, staging: Staging) -> None:
    for path in layout.side_files(tensors.folder, tensors):
        link_or_copy(path, staging.folder / path.name)
    _write_json(staging.folder / "config.json", layout.output_config(tensors, selection))
    if layout.has_index(tensors):
        _write_json(staging.folder / INDEX, layout.weight_map(staging.files, tensors))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _report(
    spec: ModelSpec, tensors: Checkpoint, selection: Selection, method: Method, dataset: Dataset | None,
    staging: Staging, say: Say,
) -> Report:  # fmt: skip
    result = Report(
        method=method,
        kept=selection.kept,
        weights={module: WeightFigures(**staging.done[module]) for module in selection.modules},
        files={file.name: sha256_of(staging.folder / file.name) for file in staging.files},
        data=dataset.sha256 if dataset else None,
        tokens=dataset.tokens if dataset else (0, 0),
    )
    if dataset is None:
        return result
    say("comparing with the original on held-out text")
    reference = Variant("original", spec, tensors)
    output = Variant(method, read_spec(staging.folder), Checkpoint(staging.folder))
    variants = [output] if method == "absmax" else [output, absmax_variant(reference, selection)]
    rows = _up_to(dataset.held_out, EVALUATED_TOKENS)
    result.perplexity, result.agreement = evaluate(reference, variants, rows)
    ranked = _up_to(dataset.held_out, RANKED_TOKENS)
    result.ranking = sensitivities(reference, output.tensors, selection.sites, ranked)
    return result


def absmax_variant(reference: Variant, selection: Selection) -> Variant:
    """The original with its selected weights quantized by absmax on the fly: the yardstick."""

    def prepare(step: Step) -> None:
        for module in (m for site in selection.sites if site.block == step.key for m in site.modules):
            linear = step.module.get_submodule(module.removeprefix(f"{step.key}."))
            values = absmax(linear.weight).dequantized()
            linear.weight = torch.nn.Parameter(values, requires_grad=False)

    return Variant("absmax", reference.spec, reference.tensors, prepare)


def _up_to(rows: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """The first rows that make up `tokens`, at least one."""
    chosen: list[list[int]] = []
    for row in rows:
        if chosen and sum(map(len, chosen)) + len(row) > tokens:
            break
        chosen.append(row)
    return chosen


class _Progress:
    """Says after each weight how much is done and, from the pace so far, how long the rest will take."""

    def __init__(self, tensors: Checkpoint, modules: Sequence[str], say: Say) -> None:
        self._sizes = {module: tensors[f"{module}.weight"].nbytes for module in modules}
        self._total, self._done, self._say, self._start = sum(self._sizes.values()), 0, say, time.monotonic()

    def advance(self, module: str) -> None:
        self._done += self._sizes[module]
        left = (time.monotonic() - self._start) * (self._total / self._done - 1)
        self._say(f"{self._done / self._total:4.0%}  {left / 60:.1f} min left  {module}")
