"""Which linears of a checkpoint are quantized, and why others stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from deltart.calib.formats import FP8, Format
from deltart.errors import ConfigError
from deltart.export.checkpoint import Checkpoint
from deltart.export.formats.bf16 import Linear
from deltart.export.formats.experts import FusedExperts
from deltart.export.formats.fp8_block import GROUPS
from deltart.export.graph import Block
from deltart.export.models.registry import graphs_of
from deltart.export.regions import PARTS
from deltart.export.spec import ModelSpec
from deltart.export.weights import build_module
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.safetensors import TensorInfo


@dataclass(frozen=True)
class Site:
    """Linears that read one input: full module names in the checkpoint. `block` is their layer's name.

    All routed experts of a layer are one site too, named as quantized ones are: each reads its own tokens, so no text
    is kept for them.
    """

    block: str
    modules: tuple[str, ...]
    routed: bool = False


@dataclass(frozen=True)
class Selection:
    """Sites to quantize, in the order of the model, and why other candidates stay as they are."""

    sites: tuple[Site, ...]
    kept: dict[str, str]

    @property
    def modules(self) -> list[str]:
        """Every module to quantize."""
        return [module for site in self.sites for module in site.modules]


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
            for name, child in module.named_modules():
                if isinstance(child, FusedExperts):
                    yield _routed(block, name, child.count)


def _routed(block: Block, name: str, count: int) -> Site:
    experts = block.tensor_name(f"{name}.")
    parts = (f"{experts}{number}.{part}" for number in range(count) for part in PARTS)
    return Site(block_key(block), tuple(parts), routed=True)


def select(
    sites: Iterable[Site],
    tensors: Mapping[str, TensorInfo],
    modules: Sequence[str] | None,
    keep: Sequence[str] = (),
    form: Format = FP8,
) -> Selection:
    """The sites to quantize.

    Args:
        tensors: what is stored, experts by themselves (see experts.unfused).
        modules: parts of the names of what to quantize ("mlp", "layers.3", "q_proj"); all candidates when None.
        keep: parts of the names of what stays as it is.
        form: what the weights become.

    Raises:
        ConfigError: a name matches nothing, splits a fused group, nothing is left to quantize, or routed experts are,
            which the format can't hold.
    """
    sites = list(sites)
    _check_names("--modules", modules or (), sites)
    _check_names("--keep", keep, sites)
    reasons = {site: _why_kept(site, tensors, modules, keep) for site in sites}
    chosen = tuple(site for site, reason in reasons.items() if reason is None)
    if not chosen:
        expected, hint = f"linears with sizes that {BLOCK} divides", "see --modules and --keep"
        raise ConfigError("no module is left to quantize", expected, hint)
    experts = next((site for site in chosen if site.routed), None)
    if experts is not None and not form.routed:
        raise ConfigError(
            f"routed experts to quantize ({experts.modules[0]}) to {form.name}",
            "FP8 for them",
            "leave them as they are with --keep experts, or use --format fp8",
        )
    return Selection(chosen, {m: reason for site, reason in reasons.items() if reason for m in site.modules})


def _why_kept(
    site: Site, tensors: Mapping[str, TensorInfo], modules: Sequence[str] | None, keep: Sequence[str]
) -> str | None:
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
