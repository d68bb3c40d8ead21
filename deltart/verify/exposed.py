"""ONNX Runtime with the result of every block visible, for comparing models layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from deltart.runtime.backends.ort import OrtBackend, WeightMode


class ExposedBackend(OrtBackend):
    """An `OrtBackend` whose graphs also return each block's hidden state, the text graph's named as in `points`."""

    def __init__(self, artifact: Path, target: str = "ort", weights: WeightMode = "folded", threads: int = 0) -> None:
        super().__init__(artifact, target, weights, threads)
        self.points = expose(self._read("model"))

    def tower(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the vision graph: every block's hidden state and "embeds", f32 [F, patches or rows, ...]."""
        assert self.manifest.vision is not None
        session = self.session(self.manifest.vision.graph)
        names = [output.name for output in session.get_outputs()]
        outputs: list[np.ndarray] = session.run(names, dict(inputs))
        return dict(zip([*names[1:], names[0]], [*outputs[1:], outputs[0]], strict=True))

    def _model(self, graph: str) -> bytes:
        model = self._read(graph)
        expose(model)
        content: bytes = model.SerializeToString()
        return content

    def _read(self, graph: str) -> onnx.ModelProto:
        return onnx.load_model_from_string(super()._model(graph))


def expose(model: onnx.ModelProto) -> list[str]:
    """Make the hidden states between blocks outputs of `model`; their names, in order.

    Those of a text model are typed as its "hidden"; those of the tower have no shape, which is of other sizes than its
    "embeds".
    """
    like = next(output for output in model.graph.output if output.name in ("hidden", "embeds"))
    names = [o for node in model.graph.node for o in node.output if o.endswith(".h") and "/" not in o]
    for name in names:
        added = model.graph.output.add()
        added.CopyFrom(like)
        added.name = name
        if like.name == "embeds":
            added.type.tensor_type.ClearField("shape")
    return names
