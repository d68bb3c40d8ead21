"""How the checkpoint stores a linear layer decides which module stands for it: one file per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from deltart.dtypes import E4M3
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import CompressedSpec, Int4Scheme, Scheme
from deltart.export.formats.bf16 import Linear
from deltart.export.formats.experts import (
    ExpertRun,
    Experts,
    FusedExperts,
    Int4ExpertRun,
    Run,
    as_written,
    compressed_scheme,
    stored_runs,
)
from deltart.export.formats.fp8_block import FUSED_EXPERTS, Fp8BlockLinear
from deltart.export.formats.fp8_compressed import fp8_linear, stored_fp8
from deltart.export.formats.int4_group import Int4GroupLinear, stored_group_size
from deltart.export.regions import KINDS, PACKED, PACKED_SCALE, PARTS
from deltart.export.spec import Fp8Spec, MoeSpec


@dataclass(frozen=True)
class Linears:
    """Makes the linear layers of a module tree whose checkpoint prefix is `prefix` ("model.layers.0.").

    `checkpoint` says where its tensors lie; None for one that is still to be written. `renamed` maps the start of a
    module's name to the start of its tensors' names, where they differ.
    """

    fp8: Fp8Spec | None
    compressed: CompressedSpec | None = None
    prefix: str = ""
    checkpoint: Checkpoint | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def under(self, name: str) -> Linears:
        """The same, one module down."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def __call__(self, name: str, in_features: int, out_features: int) -> nn.Module:
        """A linear in the format in which the checkpoint stores module `name`, or in which it is to be written."""
        scheme = self._scheme(name, in_features, out_features)
        if isinstance(scheme, Int4Scheme):
            return Int4GroupLinear(in_features, out_features, scheme.group_size)
        if scheme is not None:
            return fp8_linear(scheme, in_features, out_features)
        return (Fp8BlockLinear if self._is_quantized(name) else Linear)(in_features, out_features)

    def experts(self, name: str, moe: MoeSpec, hidden: int) -> nn.Module:
        """The routed experts in the format in which the checkpoint stores module `name`.

        Raises CheckpointError where they lie in a way that can't be bound.
        """
        module, leaves = self._stored_name(self.prefix + name), KINDS
        make: Callable[[tuple[int, ...]], Run] = partial(ExpertRun, moe=moe, hidden=hidden)
        scheme = self._experts_scheme(module, moe, hidden) if self.compressed else None
        if scheme is None and not self._is_quantized(name):
            return FusedExperts(moe, hidden)
        if scheme is not None:
            leaves = (KINDS[0], PACKED_SCALE)
        if isinstance(scheme, Int4Scheme):
            leaves = (PACKED, PACKED_SCALE)
            make = partial(Int4ExpertRun, moe=moe, hidden=hidden, group_size=scheme.group_size)
        if self.checkpoint is None:
            return Experts([make(as_written(moe.num_experts))])
        return Experts(stored_runs(self.checkpoint, module, moe.num_experts, make, leaves))

    def _experts_scheme(self, module: str, moe: MoeSpec, hidden: int) -> Scheme | None:
        """How compressed-tensors quantized the experts `module`; None for others."""
        assert self.compressed is not None
        if self.checkpoint is not None:
            return compressed_scheme(self.checkpoint, module, moe, hidden, self.compressed)
        scheme = self.compressed.scheme(f"{module}.0.{PARTS[0]}")
        sizes = (moe.moe_intermediate_size, hidden)
        ragged = isinstance(scheme, Int4Scheme) and any(size % scheme.group_size for size in sizes)
        return None if ragged else scheme

    def _scheme(self, name: str, in_features: int, out_features: int) -> Scheme | None:
        """How compressed-tensors quantized a linear; None for others."""
        module = self._stored_name(self.prefix + name)
        if self.checkpoint is not None:
            size = stored_group_size(self.checkpoint, module, (out_features, in_features), self.compressed)
            if size is not None:
                return Int4Scheme(size)
            return stored_fp8(self.checkpoint, module, self.compressed) if self.compressed else None
        scheme = self.compressed.scheme(module) if self.compressed else None
        ragged = isinstance(scheme, Int4Scheme) and in_features % scheme.group_size
        return None if ragged else scheme

    def _is_quantized(self, name: str) -> bool:
        """What the tensors say, unless the skip list contradicts them: then that, for the ledger to refuse."""
        if self.fp8 is None:
            return False
        module = self._stored_name(self.prefix + name)
        skipped = is_skipped(module, self.fp8.modules_to_not_convert)
        weight = self.checkpoint.get(f"{module}.weight") if self.checkpoint else None
        if self.checkpoint and f"{module}.{FUSED_EXPERTS}" in self.checkpoint:
            return False
        return not skipped if weight is None else not skipped and weight.dtype == E4M3.stored

    def _stored_name(self, module: str) -> str:
        for start, other in self.renamed.items():
            if f"{module}.".startswith(start):
                return f"{other}{f'{module}.'.removeprefix(start)}".removesuffix(".")
        return module


def is_skipped(module: str, skip_list: tuple[str, ...]) -> bool:
    """Whether `module` is named by `skip_list`: itself, an ancestor, or a trailing path, on module boundaries.

    "mlp.gate" skips "layers.0.mlp.gate" but never "layers.0.mlp.gate_proj".
    """
    return any(f".{entry}." in f".{module}." and _anchored(module, entry) for entry in skip_list)


def _anchored(module: str, entry: str) -> bool:
    return f"{module}.".startswith(f"{entry}.") or f".{module}".endswith(f".{entry}")
