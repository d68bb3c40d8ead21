"""Which graphs a checkpoint gets. A new model family is a folder beside this file and a line here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltart.export.graph import ModelGraph
from deltart.export.models.qwen3_6 import deferred as qwen3_6_deferred
from deltart.export.models.qwen3_6 import graphs as qwen3_6
from deltart.export.spec import ModelSpec


def graphs_of(spec: ModelSpec, dtype: torch.dtype, mtp: bool, vision: bool = False) -> list[ModelGraph]:
    """The text graph; the MTP head's and the vision tower's where the checkpoint has one and it is asked for."""
    tower = spec.vision if vision else None
    graphs = [qwen3_6.text_graph(spec, dtype, tower is not None)]
    if mtp and spec.mtp_num_hidden_layers:
        graphs.append(qwen3_6.mtp_graph(spec, dtype, tower is not None))
    if tower is not None:
        graphs.append(qwen3_6.vision_graph(spec, tower, dtype))
    return graphs


def deferred_of(spec: ModelSpec, mtp: bool, vision: bool) -> Iterator[tuple[str, str]]:
    """(start of the tensors' names, reason) of what the graphs leave out."""
    return qwen3_6_deferred.deferred(spec, mtp, vision)
