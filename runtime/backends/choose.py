"""Picks the backend for an artifact on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from deltart.errors import DeltaRTError
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.ort import OrtBackend, WeightMode

Target = Literal["auto", "tensorrt", "native", "ort", "portable"]


def open_backend(
    artifact: Path,
    target: Target = "auto",
    weights: WeightMode = "folded",
    threads: int = 0,
    plugins: Path | None = None,
) -> ServingBackend:
    """The backend that `target` names; "auto" is an engine where there are plans and a GPU, else ONNX Runtime.

    "native" takes native plans where there are TensorRT's too.

    `plugins` is TensorRT's C++ plugin library, None for the Python classes; ONNX Runtime has no use for it.

    Raises:
        ArtifactError, MissingDependencyError: what the backend needs is not there. A GPU and plans that can't be
            used are an error too, not a reason to run on the CPU.
    """
    if target in ("tensorrt", "native") or (target == "auto" and _has_plans(artifact) and _has_gpu()):
        from deltart.runtime.backends.gpu.backend import TensorRtBackend

        return TensorRtBackend(artifact, "native" if target == "native" else None, plugins=plugins)
    return OrtBackend(artifact, "portable" if target == "portable" else "ort", weights, threads)


def _has_plans(artifact: Path) -> bool:
    return any((artifact / "engine").glob("**/*.plan"))


def _has_gpu() -> bool:
    try:
        from deltart.runtime.backends.gpu.cuda import device_name

        return bool(device_name())
    except (DeltaRTError, ImportError):
        return False
