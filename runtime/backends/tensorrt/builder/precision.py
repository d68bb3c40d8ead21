"""The precision of a plan's activations, as far as the lowered graph leaves it open."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from deltart.plugins.fp8_linear.activations import AS_STORED, ATTRIBUTE, ROUNDED, WHERE_MULTIPLIED
from deltart.plugins.spec import DOMAIN
from deltart.runtime.backends.gpu.engine_manifest import Activations

MODES: dict[Activations, int] = {"bf16": AS_STORED, "fp8": ROUNDED, "auto": WHERE_MULTIPLIED}


def can_quantize(content: bytes) -> bool:
    """Whether any op of the ONNX model `content` takes E4M3 activations."""
    return any(True for _ in _attributes(onnx.load_model_from_string(content)))


def with_activations(content: bytes, activations: Activations) -> bytes:
    """The ONNX model `content`, the activations of its block-FP8 linears as they are ("bf16"), in E4M3 ("fp8"), or in
    E4M3 on the GPUs that multiply it ("auto")."""
    model = onnx.load_model_from_string(content)
    for attribute in _attributes(model):
        attribute.i = MODES[activations]
    return model.SerializeToString(deterministic=True)


def _attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in model.graph.node:
        if node.domain == DOMAIN:
            yield from (attribute for attribute in node.attribute if attribute.name == ATTRIBUTE)
