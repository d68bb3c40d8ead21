"""What TensorRT learns about one GPU, kept in files: timings of kernels between builds, compiled ones between runs.

A file that is absent, stale or damaged, or can't be written, costs time and is no error.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltart.files import write_atomically


class TimingCache:
    """Timings that flavour "tensorrt" measures during a build. Use on one IBuilderConfig at a time.

    (TensorRT-RTX times nothing while it builds: its timing caches are deprecated no-ops.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give `config` the kept timings, or an empty cache where TensorRT refuses them."""
        for content in dict.fromkeys((read(self.path), b"")):
            self._cache = config.create_timing_cache(content)
            if self._cache is not None and config.set_timing_cache(self._cache, False):
                return

    def save(self) -> None:
        """Keep what the build measured."""
        if self._cache is not None:
            keep(self.path, self._cache.serialize())


class KernelCache:
    """Kernels that TensorRT-RTX compiled for one plan on one machine: an IRuntimeCache in a file.

    Args:
        config: the engine's IRuntimeConfig, before a context is made of it.
        path: where the kernels are kept.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self.path = path
        self._cache = config.create_runtime_cache()
        content = read(path)
        self.loaded = bool(content) and bool(self._cache.deserialize(content))
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what is compiled by now."""
        keep(self.path, self._cache.serialize())


def cache_path(folder: Path, stem: str, suffix: str, *parts: str) -> Path:
    """File of a cache that holds for exactly these `parts`: versions, device, plan."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return folder / f"{stem}.{digest}.{suffix}"


def read(path: Path) -> bytes:
    """The file's content; nothing where it can't be read."""
    with suppress(OSError):
        return path.read_bytes()
    return b""


def keep(path: Path, content: Any) -> None:
    """Write serialized `content` (bytes-like, or None for nothing) atomically, where the folder lets us."""
    if content is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, memoryview(content))
