"""ONNX Runtime with the result of every block visible, for comparing models layer by layer."""

from __future__ import annotations

from pathlib import Path

import onnx

from deltart.runtime.backends.ort import OrtBackend, WeightMode


class ExposedBackend(OrtBackend):
    """An `OrtBackend` whose text graph also returns each block's hidden state, named as in `points`."""

    def __init__(self, artifact: Path, target: str = "ort", weights: WeightMode = "folded", threads: int = 0) -> None:
        super().__init__(artifact, target, weights, threads)
        self.points = expose(self._read("model"))

    def _model(self, graph: str) -> bytes:
        model = self._read(graph)
        expose(model)
        content: bytes = model.SerializeToString()
        return content

    def _read(self, graph: str) -> onnx.ModelProto:
        return onnx.load_model_from_string(super()._model(graph))


def expose(model: onnx.ModelProto) -> list[str]:
    """Make the hidden states between blocks outputs of `model`, typed as its "hidden"; their names, in order."""
    hidden = next(o for o in model.graph.output if o.name == "hidden")
    names = [o for node in model.graph.node for o in node.output if o.endswith(".h") and "/" not in o]
    for name in names:
        added = model.graph.output.add()
        added.CopyFrom(hidden)
        added.name = name
    return names
