"""Finds TensorRT in one of its two flavours and makes it ready for our plugins."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltart.errors import MissingDependencyError
from deltart.plugins.registry import OPS
from deltart.plugins.trt_plugin import register_plugins
from deltart.runtime.backends.elf_alias import load_alias
from deltart.runtime.backends.tensorrt_plans import Flavour

# Modules by flavour, the first that is installed serves. "rtx" builds for GPUs that are not there.
MODULES: dict[Flavour, tuple[str, ...]] = {
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
PACKAGES = {"rtx": "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs", "tensorrt": "tensorrt-cu13"}


@dataclass
class Messages:
    """What TensorRT said, by severity."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    info: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Library:
    """A loaded TensorRT: its module, its logger and what was logged."""

    flavour: Flavour
    trt: Any
    logger: Any
    messages: Messages

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.trt.__version__)


def installed() -> list[Flavour]:
    """Flavours that can be imported here."""
    return [flavour for flavour, names in MODULES.items() if any(find_spec(name) for name in names)]


def load_library(flavour: Flavour | None = None) -> Library:
    """TensorRT with the composite ops registered as plugins.

    Args:
        flavour: None for the one that is installed ("rtx" where both are: it needs no GPU to build).

    Raises:
        MissingDependencyError: it is not installed.
    """
    found = installed()
    chosen = flavour or (found[0] if found else "rtx")
    if chosen not in found:
        raise MissingDependencyError(
            f"TensorRT is not installed in flavour '{chosen}'", PACKAGES[chosen], f"pip install {PACKAGES[chosen]}"
        )
    trt = import_module(next(name for name in MODULES[chosen] if find_spec(name)))
    if chosen == "rtx":
        _name_the_library()
    register_plugins(trt, OPS)
    messages = Messages()
    return Library(chosen, trt, _logger(trt, messages), messages)


def _name_the_library() -> None:
    """The wheel ships libtensorrt_rtx.so.1, its ONNX parser opens libtensorrt_rtx.so and aborts without it."""
    libraries = import_module("tensorrt_rtx_libs").__file__
    assert libraries is not None
    load_alias(Path(libraries).parent / "libtensorrt_rtx.so.1", "libtensorrt_rtx.so")


def _logger(trt: Any, messages: Messages) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                messages.warnings.append(text)
            elif severity == trt.ILogger.INFO:
                messages.info.append(text)

    return Logger()
