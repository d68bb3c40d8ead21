"""What the output's files hold, decided before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from deltart.calib.experts import experts_of, fused_experts, parts_of
from deltart.calib.formats import FP8, Format
from deltart.calib.selection import Selection, cache_scale_names
from deltart.dtypes import F32
from deltart.export.checkpoint import Checkpoint
from deltart.json_files import read_json
from deltart.safetensors import INDEX, TensorInfo, index_of, plan_file, unplaced, written_order
from deltart.staging import OutputFile


def plan_files(
    tensors: Checkpoint, selection: Selection, scale_dtype: str, caches: Sequence[str] = (), form: Format = FP8
) -> list[OutputFile]:
    """The input's files again, each weight to quantize replaced by its values and scales.

    Args:
        caches: attention modules that get KV-cache scales, beside their k_norm.
    """
    quantized = {f"{module}.weight" for module in selection.modules}
    hosts = {f"{module}.k_norm.weight": cache_scale_names(module) for module in caches}
    before, after = _grouped(tensors, set()), _grouped(tensors, quantized)
    files = []
    for source in tensors.files:
        infos = after[source.name]
        if infos == before[source.name] and (quantized | hosts.keys()).isdisjoint(info.name for info in infos):
            files.append(OutputFile(source.name, b"", {}, source.size, linked=True))
        else:
            out = [
                new for info in infos for new in (form.plan(info, scale_dtype) if info.name in quantized else [info])
            ]
            scales = (name for info in infos for name in hosts.get(info.name, ()))
            out += [unplaced(name, F32.stored, ()) for name in scales]
            files.append(_lay_out(source.name, out))
    return files


def _grouped(tensors: Checkpoint, quantized: Set[str]) -> dict[str, list[TensorInfo]]:
    """Tensors by file. Experts to quantize come one by one, all of a layer in one file: so they can be bound as one."""
    routed = {experts_of(name) for name in quantized}
    files: dict[str, list[TensorInfo]] = {file.name: [] for file in tensors.files}
    homes: dict[str, str] = {}
    for info in tensors.values():
        experts = fused_experts(info.name)
        if experts in routed and experts is not None:
            files[homes.setdefault(experts, info.file)] += parts_of(info)
        else:
            files[info.file].append(info)
    return files


def weight_map(files: Sequence[OutputFile], tensors: Checkpoint) -> dict[str, Any]:
    """The content of the output's index."""
    linked = {file.name for file in files if file.linked}
    places = {name: info for file in files for name, info in file.tensors.items()}
    places |= {name: info for name, info in tensors.items() if info.file in linked}
    return index_of(places.values())


def output_config(tensors: Checkpoint, selection: Selection, form: Format = FP8) -> dict[str, Any]:
    """The input's config.json with the format's quantization_config, every module that stays in its list."""
    config: dict[str, Any] = read_json(tensors.folder / "config.json")
    quantized = set(selection.modules)
    kept = {fused_experts(name) or name.removesuffix(".weight").removesuffix(".bias") for name in tensors} - quantized
    kept -= {str(experts_of(module)) for module in quantized}
    # Runtimes that fuse in_proj_a and in_proj_b look the fused name up, and the tower's name stands for all in it.
    kept |= {name.removesuffix("in_proj_b") + "in_proj_ba" for name in kept if name.endswith("in_proj_b")}
    kept |= {"visual", "model.visual"} if any(name.startswith("model.visual.") for name in kept) else set()
    kept.add("lm_head")  # loaders have the module even where it is the embedding and nothing of it is stored
    config["quantization_config"] = form.config(kept)
    return config


def has_index(tensors: Checkpoint) -> bool:
    """Whether the input is sharded, and so the output."""
    return (tensors.folder / INDEX).exists()


def _lay_out(name: str, infos: list[TensorInfo]) -> OutputFile:
    plan = plan_file(name, written_order(infos), {"format": "pt"})
    return OutputFile(name, plan.header, plan.tensors, plan.size, linked=False)


def side_files(folder: Path, tensors: Checkpoint) -> list[Path]:
    """Everything else that lies in the checkpoint folder and belongs to it: tokenizer, template, generation config."""
    own = {file.name for file in tensors.files} | {INDEX, "config.json"}
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name not in own and not p.name.startswith("."))
