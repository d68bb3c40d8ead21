"""Which plans of an artifact the installed TensorRT can run, and what makes their executors."""

from __future__ import annotations

from pathlib import Path

from deltart.runtime.backends.gpu.engine_manifest import FILE_NAME, EngineManifest, Flavour, engine_folder
from deltart.runtime.backends.gpu.executor import Load
from deltart.runtime.backends.tensorrt.executor import TensorRtExecutor
from deltart.runtime.backends.tensorrt.library import installed, load_tensorrt


def built_flavour(artifact: Path) -> Flavour:
    """The installed flavour whose plans the artifact has; "rtx" where there are none, for the error it gives."""
    return next((f for f in installed() if (engine_folder(artifact, f) / FILE_NAME).exists()), "rtx")


def executors(engine: EngineManifest, plugins: Path | None) -> Load:
    """TensorRT's executors; raises before any weight is read when they could not run."""
    library = load_tensorrt(engine.flavour, plugins)
    return lambda path, entry: TensorRtExecutor(library, path, entry)
