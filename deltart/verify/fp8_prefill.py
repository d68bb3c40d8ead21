"""The CPU twin of an engine whose prefill quantizes activations: prefill calls in W8A8, decode as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from deltart.errors import ArtifactError
from deltart.runtime.backends.base import SlotState
from deltart.runtime.backends.gpu.engine_manifest import SPECULATE_TOKENS
from deltart.runtime.backends.ort import WeightMode
from deltart.verify.exposed import ExposedBackend


class Fp8PrefillBackend:
    """ONNX Runtime on an artifact, calls of more than SPECULATE_TOKENS with another body of a linear.

    Args:
        artifact: folder written by `deltart export`.
        linear: the ONNX function that takes the place of the graphs' own function of its name.
        target, weights: as OrtBackend takes them.

    Raises:
        ArtifactError: no graph of the artifact has such a function: there is no block-FP8 weight.
    """

    def __init__(
        self, artifact: Path, linear: onnx.FunctionProto, target: str = "ort", weights: WeightMode = "folded"
    ) -> None:
        self._decode = ExposedBackend(artifact, target, weights)
        self._prefill = _Replaced(artifact, linear, target, weights)
        self.manifest, self.points = self._decode.manifest, self._decode.points

    def new_state(self, graph: str, slots: int, capacity: int) -> SlotState:
        """See Backend."""
        return self._decode.new_state(graph, slots, capacity)

    def run(
        self, graph: str, state: SlotState, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """See Backend."""
        rounds = inputs["input_ids"].shape[1] > SPECULATE_TOKENS  # shorter calls are not prefill's
        backend = self._prefill if rounds else self._decode
        return backend.run(graph, state, inputs, outputs)


class _Replaced(ExposedBackend):
    def __init__(self, artifact: Path, linear: onnx.FunctionProto, target: str, weights: WeightMode) -> None:
        self._linear = linear
        super().__init__(artifact, target, weights)

    def _read(self, graph: str) -> onnx.ModelProto:
        model = super()._read(graph)
        found = [f for f in model.functions if (f.domain, f.name) == (self._linear.domain, self._linear.name)]
        if not found:
            raise ArtifactError(f"{self.artifact} has no block-FP8 weight", hint="calibrate the checkpoint first")
        found[0].CopyFrom(self._linear)
        return model
