"""Which graphs a checkpoint gets. A new model family is a folder beside this file and a line here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltart.export.graph import ModelGraph
from deltart.export.models.qwen3_6 import deferred as qwen3_6_deferred
from deltart.export.models.qwen3_6 import graphs as qwen3_6
from deltart.export.spec import ModelSpec


def graphs_of(spec: ModelSpec, dtype: torch.dtype, mtp: bool) -> list[ModelGraph]:
    """The text graph, and the MTP head's where the checkpoint has one and `mtp` asks for it."""
    graphs = [qwen3_6.text_graph(spec, dtype)]
    if mtp and spec.mtp_num_hidden_layers:
        graphs.append(qwen3_6.mtp_graph(spec, dtype))
    return graphs


def deferred_of(spec: ModelSpec, mtp: bool) -> Iterator[tuple[str, str]]:
    """(start of the tensors' names, reason) of what the graphs leave out."""
    return qwen3_6_deferred.deferred(spec, mtp)
