"""Which linears become FP8, and what the output's files hold: decided before a byte is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltart.errors import ConfigError
from deltart.export.checkpoint import INDEX, Checkpoint, TensorInfo
from deltart.export.formats.bf16 import Linear
from deltart.export.graph import Block
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec
from deltart.export.weights import build_module
from deltart.json_files import read_json
from deltart.plugins.fp8_block_linear.reference import BLOCK

# The linears that the vendor quantizes. Those of one group read the same input, and runtimes fuse them into one
# matrix, so a group is quantized as a whole or not at all.
GROUPS = (
    ("in_proj_qkv", "in_proj_z"),
    ("out_proj",),
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


@dataclass(frozen=True)
class Site:
    """Linears that read one input: full module names in the checkpoint. `block` is their layer's name."""

    block: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """Sites to quantize, in the order of the model, and why other candidates stay as they are."""

    sites: tuple[Site, ...]
    kept: dict[str, str]

    @property
    def modules(self) -> list[str]:
        """Every module to quantize."""
        return [module for site in self.sites for module in site.modules]


@dataclass(frozen=True)
class OutputFile:
    """One output shard: its tensors with offsets from the start of the data, and the header that says so."""

    name: str
    header: bytes
    tensors: dict[str, TensorInfo]
    size: int
    linked: bool  # equal to the input's file of this name


def block_key(block: Block) -> str:
    """The layer's name in the checkpoint: "model.layers.0", "mtp.layers.0"."""
    return block.prefixes.get("", "").removesuffix(".")


def candidates(spec: ModelSpec, tensors: Checkpoint) -> Iterator[Site]:
    """Every site that the vendor's convention quantizes. Raises CheckpointError for missing or misshapen tensors."""
    for graph in graphs_of(spec, torch.float32, mtp=True):
        for block in (block for block in graph.blocks if block.states):
            module = build_module(block, spec, tensors)
            linears = [name for name, child in module.named_modules() if isinstance(child, Linear)]
            for group in GROUPS:
                members = [name for leaf in group for name in linears if name.rpartition(".")[2] == leaf]
                if members:
                    names = (block.tensor_name(f"{name}.weight").removesuffix(".weight") for name in members)
                    yield Site(block_key(block), tuple(names))


def select(
    sites: Iterable[Site], tensors: Checkpoint, modules: Sequence[str] | None, keep: Sequence[str] = ()
) -> Selection:
    """The sites to quantize.

    Args:
        modules: parts of the names of what to quantize ("mlp", "layers.3", "q_proj"); all candidates when None.
        keep: parts of the names of what stays as it is.

    Raises:
        ConfigError: a name matches nothing, splits a fused group, or nothing is left to quantize.
    """
    sites = list(sites)
    _check_names("--modules", modules or (), sites)
    _check_names("--keep", keep, sites)
    reasons = {site: _why_kept(site, tensors, modules, keep) for site in sites}
    chosen = tuple(site for site, reason in reasons.items() if reason is None)
    if not chosen:
        expected, todo = f"linears with sizes that {BLOCK} divides", "see --modules and --keep"
        raise ConfigError("no module is left to quantize", expected, todo)
    return Selection(chosen, {m: reason for site, reason in reasons.items() if reason for m in site.modules})


def _why_kept(site: Site, tensors: Checkpoint, modules: Sequence[str] | None, keep: Sequence[str]) -> str | None:
    """Why the site stays as it is; None when it is to be quantized."""
    wanted = [m for m in site.modules if modules is None or any(_names(name, m) for name in modules)]
    if not wanted:
        return "left out by --modules"
    kept = [m for m in site.modules if any(_names(name, m) for name in keep)]
    if len(kept) == len(site.modules):
        return "left out by --keep"
    _check_whole("--modules quantizes", wanted, site)
    if kept:
        _check_whole("--keep keeps", kept, site)
    for module in site.modules:
        shape = tensors[f"{module}.weight"].shape
        if any(size % BLOCK for size in shape):
            return f"{module} has shape {list(shape)}, which blocks of {BLOCK} do not tile"
    return None


def _check_whole(what: str, named: Sequence[str], site: Site) -> None:
    missing = ", ".join(m for m in site.modules if m not in named)
    if missing:
        raise ConfigError(
            f"{what} {', '.join(named)} without {missing}",
            "all of them or none: runtimes fuse them into one matrix",
            "add the missing ones, or leave the others out",
        )


def _names(path: str, module: str) -> bool:
    """Whether `path` is part of the module's name, on module boundaries."""
    return f".{path}." in f".{module}."


def _check_names(flag: str, names: Sequence[str], sites: Sequence[Site]) -> None:
    for name in names:
        if not any(_names(name, module) for site in sites for module in site.modules):
            known = ", ".join(leaf for group in GROUPS for leaf in group)
            raise ConfigError(f"{flag} names '{name}', which matches no linear that can be quantized", known)


def cache_modules(sites: Iterable[Site]) -> list[str]:
    """The attention modules that have a KV cache."""
    modules = (site.modules[0].rpartition(".")[0] for site in sites if site.modules[0].endswith(".self_attn.q_proj"))
    return list(modules)


def cache_scale_names(module: str) -> tuple[str, str]:
    """Tensors that hold the KV-cache scales of an attention module, by the names that vLLM reads."""
    return f"{module}.k_scale", f"{module}.v_scale"


def plan_files(
    tensors: Checkpoint, selection: Selection, scale_dtype: str, caches: Sequence[str] = ()
) -> list[OutputFile]:
    """The input's files again, each weight to quantize replaced by its E4M3 values and its scale.

    Args:
        caches: attention modules that get KV-cache scales, beside their k_norm.
    """
    quantized = {f"{module}.weight" for module in selection.modules}
    hosts = {f"{module}.k_norm.weight": cache_scale_names(module) for module in caches}
    files = []
    for source in tensors.files:
        infos = [info for info in tensors.values() if info.file == source.name]
        if (quantized | hosts.keys()).isdisjoint(info.name for info in infos):
            files.append(OutputFile(source.name, b"", {}, source.size, linked=True))
        else:
            out = [new for info in infos for new in _stored(info, info.name in quantized, scale_dtype)]
            scales = (name for info in infos for name in hosts.get(info.name, ()))
            out += [TensorInfo(name, source.name, 0, 4, "F32", ()) for name in scales]
            files.append(_lay_out(source.name, out))
    return files


def weight_map(files: Sequence[OutputFile], tensors: Checkpoint) -> dict[str, Any]:
    """The content of the output's index."""
    linked = {file.name for file in files if file.linked}
    places = {name: info for file in files for name, info in file.tensors.items()}
    places |= {name: info for name, info in tensors.items() if info.file in linked}
    total = sum(info.nbytes for info in places.values())
    return {"metadata": {"total_size": total}, "weight_map": {name: places[name].file for name in sorted(places)}}


def output_config(tensors: Checkpoint, selection: Selection) -> dict[str, Any]:
    """The input's config.json with the vendor's quantization_config, every module that stays in its skip list."""
    config: dict[str, Any] = read_json(tensors.folder / "config.json")
    quantized = set(selection.modules)
    kept = {name.removesuffix(".weight").removesuffix(".bias") for name in tensors} - quantized
    # Runtimes that fuse in_proj_a and in_proj_b look the fused name up, and the tower's name stands for all in it.
    kept |= {name.removesuffix("in_proj_b") + "in_proj_ba" for name in kept if name.endswith("in_proj_b")}
    kept |= {"visual", "model.visual"} if any(name.startswith("model.visual.") for name in kept) else set()
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted(kept),
    }
    return config


def has_index(tensors: Checkpoint) -> bool:
    """Whether the input is sharded, and so the output."""
    return (tensors.folder / INDEX).exists()


def _stored(info: TensorInfo, quantized: bool, scale_dtype: str) -> list[TensorInfo]:
    if not quantized:
        return [info]
    rows, columns = info.shape
    scale = (rows // BLOCK, columns // BLOCK)
    itemsize = {"BF16": 2, "F32": 4}[scale_dtype]
    return [
        TensorInfo(info.name, info.file, 0, rows * columns, "F8_E4M3", info.shape),
        TensorInfo(f"{info.name}_scale_inv", info.file, 0, scale[0] * scale[1] * itemsize, scale_dtype, scale),
    ]


def _lay_out(name: str, infos: list[TensorInfo]) -> OutputFile:
    """Wide elements first, so that every tensor is aligned to its element."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, ordered = 0, sorted(infos, key=lambda i: (i.dtype.startswith("F8"), i.dtype != "F32", i.name))
    for info in ordered:
        span = [offset, offset + info.nbytes]
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": span}
        offset = span[1]
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    header = len(raw).to_bytes(8, "little") + raw
    placed = {
        i.name: TensorInfo(i.name, name, len(header) + entries[i.name]["data_offsets"][0], i.nbytes, i.dtype, i.shape)
        for i in ordered
    }
    return OutputFile(name, header, placed, len(header) + offset, linked=False)


def side_files(folder: Path, tensors: Checkpoint) -> list[Path]:
    """Everything else that lies in the checkpoint folder and belongs to it: tokenizer, template, generation config."""
    own = {file.name for file in tensors.files} | {INDEX, "config.json"}
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name not in own and not p.name.startswith("."))
