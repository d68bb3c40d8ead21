"""Accounts for every tensor of a checkpoint: some graph reads it, or it is left out for a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deltart.errors import CheckpointError
from deltart.export.bound import BoundModel
from deltart.export.checkpoint import Checkpoint
from deltart.export.models.registry import deferred_of
from deltart.export.regions import GROUPS, PACKED_SHAPE
from deltart.plurals import counted


@dataclass
class Ledger:
    """Who consumed which tensor: `bound` maps a tensor to the graphs that read it, `deferred` to the reason."""

    checkpoint: Checkpoint
    bound: dict[str, list[str]] = field(default_factory=dict)
    deferred: dict[str, str] = field(default_factory=dict)

    def bind(self, names: Iterable[str], graph: str) -> None:
        """Record that `graph` reads `names`, of a region every tensor in it."""
        for name in names:
            region = self.checkpoint.regions.get(name)
            for tensor in region.members if region else (name,):
                graphs = self.bound.setdefault(tensor, [])
                if graph not in graphs:
                    graphs.append(graph)

    def defer(self, prefix: str, reason: str) -> None:
        """Set aside every tensor whose name starts with `prefix`."""
        self.deferred.update({name: reason for name in self.checkpoint if name.startswith(prefix)})

    def settle(self) -> None:
        """Raises CheckpointError, naming them, when tensors are neither bound nor deferred."""
        left = [name for name in self.checkpoint if name not in self.bound and name not in self.deferred]
        if left:
            raise CheckpointError(
                f"used by no graph: {counted(len(left), 'tensor')} of the checkpoint, {_sample(left)}",
                "every tensor bound or deferred",
                "a tensor this model does not know would be silently lost: check config.json against the weights",
            )


def ledger_of(model: BoundModel) -> Ledger:
    """The fate of every tensor of the model's checkpoint.

    Raises:
        CheckpointError: a tensor has none, or the tensors of a file overlap.
    """
    ledger = Ledger(model.checkpoint)
    for prefix, reason in deferred_of(model.spec, model.mtp, model.vision):
        ledger.defer(prefix, reason)
    for name in model.checkpoint:
        module, _, leaf = name.rpartition(".")
        if leaf == PACKED_SHAPE and f"{module}.{GROUPS}" in model.checkpoint.regions:
            ledger.deferred[name] = "the shape of a packed weight, compared when it was exported"
    for bound in model.graphs:
        for block in bound.blocks:
            ledger.bind(block.tensors, bound.graph.name)
    ledger.settle()
    model.checkpoint.check_layout()
    return ledger


def _sample(names: list[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
