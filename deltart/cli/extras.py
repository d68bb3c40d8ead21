"""Optional packages: which extra of deltart brings one that a command misses."""

from __future__ import annotations

from deltart.errors import MissingDependencyError

# Packages that some command imports and the plain installation lacks.
OPTIONAL = (
    "cuda", "matplotlib", "onnx", "onnxruntime", "onnxscript", "safetensors", "starlette", "tensorrt", "tensorrt_rtx",
    "tensorrt_rtx_bindings", "tensorrt_rtx_libs", "torch", "transformers", "uvicorn",
)  # fmt: skip


def missing(error: ImportError, command: str, extra: str) -> MissingDependencyError:
    """What to say where `error` ended `command`, which works with `extra`; raises `error` where that is no cure."""
    name = (error.name or "").partition(".")[0]
    if name not in OPTIONAL or not extra:
        raise error
    wanted = f"pip install 'deltart[{extra}]'"
    if isinstance(error, ModuleNotFoundError):
        return MissingDependencyError(f"{name} is not installed", f"what deltart {command} needs", wanted)
    return MissingDependencyError(f"{name} is installed, but can't be loaded ({error})", "a whole package", wanted)
