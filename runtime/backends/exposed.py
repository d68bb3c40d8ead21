"""ONNX Runtime with the result of every block visible, for comparing models layer by layer."""

from __future__ import annotations

from pathlib import Path

import onnx

from deltart.manifest import GraphEntry
from deltart.runtime.backends.ort import OrtBackend, WeightMode


class ExposedBackend(OrtBackend):
    """An `OrtBackend` whose text graph also returns each block's hidden state, named as in `points`."""

    def __init__(self, artifact: Path, target: str = "ort", weights: WeightMode = "folded", threads: int = 0) -> None:
        super().__init__(artifact, target, weights, threads)
        self.points = _points(self._read(self.manifest.graphs["model"]))

    def _model(self, entry: GraphEntry) -> str | bytes:
        model = self._read(entry)
        shape = ["B", "T", next(o for o in entry.outputs if o.name == "hidden").axes[-1]]
        for name in _points(model):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        content: bytes = model.SerializeToString()
        return content

    def _read(self, entry: GraphEntry) -> onnx.ModelProto:
        return onnx.load(self.artifact / entry.files[self.target], load_external_data=False)


def _points(model: onnx.ModelProto) -> list[str]:
    """Hidden states between blocks, in order."""
    return [output for node in model.graph.node for output in node.output if output.endswith(".h")]
