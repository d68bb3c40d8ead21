"""Manifests of presets without an export: what `deltart export` would write, as far as sizes go."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from deltart.export.formats.fp8_block import is_quantized, quantization_config
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.synthetic.presets import PRESETS
from deltart.export.synthetic.write import tensor_plans
from deltart.manifest import GraphEntry, Manifest, StateEntry, WeightEntry


@cache
def manifest_of(preset: str) -> Manifest:
    """The manifest of a preset; weights of experts one by one, where an export has their regions."""
    with TemporaryDirectory() as folder:
        spec = _spec(preset, Path(folder))
    plans = {plan.name: plan for plan in tensor_plans(spec)}
    drafts = [name for name in plans if name.startswith("mtp.")]
    text = [name for name in plans if name.startswith(spec.text_prefix) or name.startswith(spec.head_prefix)]
    shared = [name for name in text if "embed_tokens" in name or name.startswith(spec.head_prefix)]
    weights = {"model": text, "mtp": drafts + shared}
    return Manifest(
        architecture=spec.architecture, checkpoint="", files=[], spec=asdict(spec) | {"fp8": spec.fp8 is not None},
        max_context=spec.context_limit, vocab_size=spec.vocab_size,
        graphs={
            graph.name: GraphEntry(
                {}, [], [], [StateEntry(s.name, "", "float32", list(s.axes), []) for s in graph.states],
                weights[graph.name],
            )
            for graph in graphs_of(spec, torch.float32, mtp=True)
        },
        tensors={
            name: WeightEntry("bound", p.dtype, list(p.shape), "", 0, p.nbytes) for name, p in plans.items()
        },
        text_files=[],
    )  # fmt: skip


def _spec(preset: str, folder: Path) -> ModelSpec:
    config, path = PRESETS[preset](), folder / "config.json"
    path.write_text(json.dumps(config))
    if preset.endswith("-fp8"):
        names = {plan.name.removesuffix(".weight").removesuffix(".bias") for plan in tensor_plans(read_spec(folder))}
        kept = quantization_config(name for name in names if not is_quantized(name))
        path.write_text(json.dumps(config | {"quantization_config": kept}))
    return read_spec(folder)
