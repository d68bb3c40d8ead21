"""Which graphs a checkpoint gets. A new model family is a file beside this one and a line here."""

from __future__ import annotations

import torch

from deltart.export.graph import ModelGraph
from deltart.export.models import qwen3_6
from deltart.export.spec import ModelSpec


def graphs_of(spec: ModelSpec, dtype: torch.dtype, mtp: bool) -> list[ModelGraph]:
    """The text graph, and the MTP head's where the checkpoint has one and `mtp` asks for it."""
    graphs = [qwen3_6.text_graph(spec, dtype)]
    if mtp and spec.mtp_num_hidden_layers:
        graphs.append(qwen3_6.mtp_graph(spec, dtype))
    return graphs
