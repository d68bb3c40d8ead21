"""DeltaRT: Qwen3.5/3.6 hybrid checkpoints to ONNX and TensorRT engines, and a Python runtime for them."""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart import privacy
from deltart.version import __version__

if TYPE_CHECKING:
    from deltart.export.pipeline import export_checkpoint
    from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
    from deltart.runtime.conversation import Chats
    from deltart.runtime.engine import Engine, EngineOptions
    from deltart.runtime.sampling.params import SamplingParams
    from deltart.runtime.sequence import Request
    from deltart.runtime.structure.structure import Structure

__all__ = [
    "BuildOptions",
    "Chats",
    "Engine",
    "EngineOptions",
    "Request",
    "SamplingParams",
    "Structure",
    "__version__",
    "build_engine",
    "export_checkpoint",
    "load",
]

# Imported when they are asked for: a runtime does without torch, an export without ONNX Runtime.
_HOMES = {
    "export_checkpoint": "deltart.export.pipeline",
    "build_engine": "deltart.runtime.backends.tensorrt.builder.build",
    "BuildOptions": "deltart.runtime.backends.tensorrt.builder.build",
    "Chats": "deltart.runtime.conversation",
    "Engine": "deltart.runtime.engine",
    "EngineOptions": "deltart.runtime.engine",
    "SamplingParams": "deltart.runtime.sampling.params",
    "Request": "deltart.runtime.sequence",
    "Structure": "deltart.runtime.structure.structure",
}


privacy.switch_off()  # before any dependency is imported


def load(artifact: str | PathLike[str], **arguments: Any) -> Engine:
    """An engine over the artifact folder `artifact`; arguments as for `Engine.open`."""
    from deltart.runtime.engine import Engine

    return Engine.open(Path(artifact), **arguments)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltart' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
