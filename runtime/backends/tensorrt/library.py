"""Finds TensorRT in one of its two flavours and makes it ready for our plugins."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltart.errors import MissingDependencyError
from deltart.plugins.code_hash import plugin_code
from deltart.plugins.registry import OPS
from deltart.plugins.trt_plugin import register_plugins, take_failure, unregister_plugins
from deltart.runtime.backends.gpu.engine_manifest import Flavour
from deltart.runtime.backends.tensorrt.elf_alias import load_alias
from deltart.runtime.backends.tensorrt.native_plugins import NativePlugins

# Modules by flavour, the first that is installed serves. "rtx" builds for GPUs that are not there.
MODULES: dict[Flavour, tuple[str, ...]] = {
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
_native: dict[str, NativePlugins] = {}  # the plugin library in use, by TensorRT module
AS_IT_SHOULD_BE = ("has Int64 binding",)  # token ids and positions are int64 on both sides
PACKAGES = {"rtx": "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs", "tensorrt": "tensorrt-cu13"}


@dataclass
class Messages:
    """What TensorRT said, by severity."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    info: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget everything."""
        for kept in (self.errors, self.warnings, self.info):
            kept.clear()

    def warned(self) -> list[str]:
        """Every warning once, but for those about what is as it should be."""
        return [text for text in dict.fromkeys(self.warnings) if not any(part in text for part in AS_IT_SHOULD_BE)]


@dataclass(frozen=True)
class TensorRt:
    """A loaded TensorRT: its module, its logger, what was logged, and the C++ plugins (None: the Python classes)."""

    flavour: Flavour
    trt: Any
    logger: Any
    messages: Messages
    native: NativePlugins | None = None

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.trt.__version__)

    @property
    def plugin_code(self) -> str:
        """Hash of the plugins' code."""
        return self.native.sha256 if self.native else plugin_code()

    def take_failure(self) -> Exception | None:
        """The first error in a callback since the last call, no longer kept; an interrupt is raised at once."""
        return take_failure() or (self.native.take_failure() if self.native else None)


def installed() -> list[Flavour]:
    """Flavours that can be imported here."""
    return [flavour for flavour, names in MODULES.items() if any(find_spec(name) for name in names)]


def load_tensorrt(flavour: Flavour | None = None, plugins: Path | None = None) -> TensorRt:
    """TensorRT with the composite ops registered as plugins, in place of those of an earlier call.

    Args:
        flavour: None for the one that is installed ("rtx" where both are: it needs no GPU to build).
        plugins: the C++ plugin library; None for the Python classes.

    Raises:
        MissingDependencyError: it is not installed.
        BuildError: `plugins` is not a library that this version can use.
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
    messages = Messages()
    return TensorRt(chosen, trt, _logger(trt, messages), messages, _register(trt, chosen, plugins))


def _register(trt: Any, flavour: Flavour, plugins: Path | None) -> NativePlugins | None:
    wanted = None if plugins is None else NativePlugins.load(plugins, flavour, str(trt.__version__))
    used = _native.get(trt.__name__)
    if used is not None and used != wanted:
        _native.pop(trt.__name__).unregister(trt)
    if wanted is None:
        register_plugins(trt, OPS)
    elif used != wanted:
        unregister_plugins(trt, OPS)
        wanted.register(trt)
        _native[trt.__name__] = wanted
    return _native.get(trt.__name__)


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
