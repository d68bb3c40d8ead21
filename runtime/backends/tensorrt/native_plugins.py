"""The C++ plugin library in TensorRT's registry, in place of the Python plugin classes."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins.native.contract import contract_digest
from deltart.plugins.registry import OPS

MESSAGE_BYTES = 4096
HEADERS_OF_RTX = (1, 11)  # major versions: its own, and TensorRT's of the same interface
BUILD = "deltart plugins native -o FILE"


@dataclass(frozen=True)
class NativePlugins:
    """A loaded plugin library; two of the same file are equal."""

    path: Path
    sha256: str
    library: ctypes.CDLL = field(compare=False, repr=False)
    registered: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # handles by TensorRT module

    @classmethod
    def load(cls, path: Path, flavour: str, version: str) -> NativePlugins:
        """The library at `path`, for TensorRT `version` of `flavour`.

        Raises:
            MissingDependencyError: there is no such file.
            BuildError: it is no plugin library, has another contract, or was compiled for another TensorRT.
        """
        path = path.resolve()
        if not path.is_file():
            raise MissingDependencyError(f"{path} is not a file", "the C++ plugin library", BUILD)
        try:
            library = ctypes.CDLL(str(path))
            library.deltart_contract.restype = ctypes.c_char_p
            contract, major = library.deltart_contract().decode(), library.deltart_tensorrt_major()
            library.deltart_take_failure.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
            library.deltart_take_failure.restype = ctypes.c_size_t
        except (OSError, AttributeError) as error:
            raise BuildError(f"{path} is no plugin library: {error}", "the C++ plugin library", BUILD) from error
        if contract != contract_digest(OPS):
            raise BuildError(f"{path} has the contract {contract}", f"{contract_digest(OPS)}, this version's", BUILD)
        fitting = HEADERS_OF_RTX if flavour == "rtx" else (int(version.split(".")[0]),)
        if major not in fitting:
            raise BuildError(
                f"{path} was compiled with headers of version {major}",
                f"{' or '.join(map(str, fitting))}, for TensorRT {version} of flavour '{flavour}'",
                f"{BUILD} --include DIR",
            )
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest(), library)

    def register(self, trt: Any) -> None:
        """Make TensorRT's registry load it; raises BuildError where it refuses."""
        handle = trt.get_plugin_registry().load_library(str(self.path))
        if handle is None:
            raise BuildError(f"TensorRT did not load {self.path}", "plugins whose names are free", "see its messages")
        self.registered[trt.__name__] = handle

    def unregister(self, trt: Any) -> None:
        """Undo `register`."""
        trt.get_plugin_registry().deregister_library(self.registered.pop(trt.__name__))

    def take_failure(self) -> BuildError | None:
        """The first error inside the library since the last call, no longer kept."""
        text = ctypes.create_string_buffer(MESSAGE_BYTES)
        if not self.library.deltart_take_failure(text, MESSAGE_BYTES):
            return None
        return BuildError(text.value.decode(errors="replace"))
