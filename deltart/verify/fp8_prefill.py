"""The CPU twin of an engine whose prefill quantizes activations: prefill calls in W8A8, decode as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from deltart.errors import ArtifactError
from deltart.export.lower.functions import PORTABLE, parse_function
from deltart.plugins.fp8_linear.activations import ATTRIBUTE
from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.spec import DOMAIN
from deltart.runtime.backends.base import SlotState
from deltart.runtime.backends.gpu.engine_manifest import SPECULATE_TOKENS
from deltart.runtime.backends.ort import WeightMode
from deltart.verify.exposed import ExposedBackend

ROUNDING = frozenset(spec.name for spec in MODEL_OPS if ATTRIBUTE in spec.attributes)


class Fp8PrefillBackend:
    """ONNX Runtime on an artifact; block-FP8 linears and experts of calls of more than SPECULATE_TOKENS in W8A8.

    Args:
        artifact: folder written by `deltart export`.
        target, weights: as OrtBackend takes them.

    Raises:
        ArtifactError: a graph of the artifact has neither: there is no block-FP8 weight.
    """

    def __init__(self, artifact: Path, target: str = "ort", weights: WeightMode = "folded") -> None:
        self._decode = ExposedBackend(artifact, target, weights)
        self._prefill = _Rounding(artifact, target, weights)
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


class _Rounding(ExposedBackend):
    def _read(self, graph: str) -> onnx.ModelProto:
        model = super()._read(graph)
        layers = (node for function in model.functions for node in function.node)
        nodes = {node.op_type: node for node in layers if node.domain == DOMAIN and node.op_type in ROUNDING}
        if not nodes:
            raise ArtifactError(f"{self.artifact} has no block-FP8 weight", hint="calibrate the checkpoint first")
        for function in model.functions:
            if node := nodes.get(function.name):
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                function.CopyFrom(parse_function(PORTABLE[function.name](attributes | {ATTRIBUTE: 1})))
        return model
