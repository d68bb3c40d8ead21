"""Which plans of an artifact can run here, and what makes their executors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deltart.runtime.backends.gpu.cuda import Cuda
from deltart.runtime.backends.gpu.engine_manifest import FILE_NAME, EngineManifest, Flavour, engine_folder
from deltart.runtime.backends.gpu.executor import Load
from deltart.runtime.backends.native.executor import NativeExecutor
from deltart.runtime.backends.tensorrt.executor import TensorRtExecutor
from deltart.runtime.backends.tensorrt.library import installed, load_tensorrt


def built_flavour(artifact: Path) -> Flavour:
    """The flavour whose plans are run where none is named: the installed TensorRT's, else native plans, where the
    artifact has them; "rtx" where it has neither, for the error it gives."""
    runnable: list[Flavour] = [*installed(), "native"]
    return next((f for f in runnable if (engine_folder(artifact, f) / FILE_NAME).exists()), "rtx")


def executors(engine: EngineManifest, plugins: Path | None, device: Callable[[], Cuda]) -> Load:
    """What makes executors of the engine's plans; raises before any weight is read when they could not run.

    Args:
        device: asked for native plans alone, when one is loaded.
    """
    if engine.flavour == "native":
        return lambda path, entry: NativeExecutor(path, entry, device())
    library = load_tensorrt(engine.flavour, plugins)
    return lambda path, entry: TensorRtExecutor(library, path, entry)
