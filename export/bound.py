"""A model's blocks with the modules that the checkpoint's tensors make of them, each built once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from deltart.export.checkpoint import Checkpoint
from deltart.export.graph import Block, ModelGraph
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec
from deltart.export.structure import settle
from deltart.export.weights import build_module


@dataclass(frozen=True)
class BoundBlock:
    """A block and its module, whose parameters are on the meta device in the stored shapes and types."""

    block: Block
    module: nn.Module

    @property
    def tensors(self) -> list[str]:
        """Names in the checkpoint of the module's parameters, in their order."""
        return [self.block.tensor_name(name) for name, _ in self.module.named_parameters()]


@dataclass(frozen=True)
class BoundGraph:
    """A graph and its blocks, bound."""

    graph: ModelGraph
    blocks: tuple[BoundBlock, ...]


@dataclass(frozen=True)
class BoundModel:
    """Graphs of a checkpoint, with activations of `dtype`; `mtp` and `vision` say what was asked for."""

    spec: ModelSpec
    checkpoint: Checkpoint
    dtype: torch.dtype
    mtp: bool
    vision: bool
    graphs: tuple[BoundGraph, ...]


def bind(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    mtp: bool = True,
    vision: bool = False,
) -> BoundModel:
    """The graphs of `spec`, settled by the tensors of `checkpoint`, over them; the MTP head's and the vision tower's
    where there is one and it is asked for.

    Raises:
        CheckpointError: a block's tensors do not fit its module; see also `settle`.
    """
    spec = settle(spec, checkpoint).spec
    graphs = graphs_of(spec, dtype, mtp, vision)
    return BoundModel(
        spec, checkpoint, dtype, mtp, vision, tuple(bind_graph(graph, spec, checkpoint) for graph in graphs)
    )


def bind_graph(graph: ModelGraph, spec: ModelSpec, checkpoint: Checkpoint) -> BoundGraph:
    """One graph; raises as `bind` does."""
    blocks = (BoundBlock(block, build_module(block, spec, checkpoint)) for block in graph.blocks)
    return BoundGraph(graph, tuple(blocks))
