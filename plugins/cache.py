"""Compiled kernels, kept by the hash of their text, headers, compiler and flags."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from deltart import caches
from deltart.errors import DeltaRTError
from deltart.json_files import read_json

INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
DIGESTS = "digests.json"  # SHA-256 of an entry's files by name


def sources(source: Path) -> list[Path]:
    """`source` and every local header it reaches, in the order of first use."""
    found: list[Path] = []
    pending = [source.resolve()]
    while pending:
        path = pending.pop(0)
        if path in found:
            continue
        found.append(path)
        pending += [(path.parent / name).resolve() for name in INCLUDE.findall(path.read_text(encoding="utf-8"))]
    return found


def key(source: Path, flags: tuple[str, ...]) -> str:
    """Twelve hex digits of the texts that reach the compiler and how it is called."""
    digest = hashlib.sha256("\0".join(flags).encode())
    for path in sources(source):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def build(source: Path, flags: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` fills, made once per key, and again where its files are no longer what was made.

    It gets its name only when it is whole.

    Raises:
        CacheError: the cache can't be written, or is not this user's.
    """
    home = caches.folder(caches.KERNELS)
    final = _entry(source, flags)
    if _is_intact(final):
        return final
    with caches.writing(home):
        _remove(final)
        partial = Path(tempfile.mkdtemp(dir=home, prefix="partial."))
    try:
        make(partial)
        with caches.writing(home):
            (partial / DIGESTS).write_text(json.dumps(_digests(partial)), encoding="utf-8")
            if not _is_intact(final):  # else another process was first, with the same content
                partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def has(source: Path, flags: tuple[str, ...]) -> bool:
    """Whether `build` would find what it makes. Raises CacheError where the entry is another user's."""
    return _is_intact(_entry(source, flags))


def _entry(source: Path, flags: tuple[str, ...]) -> Path:
    return caches.folder(caches.KERNELS) / f"{source.resolve().parent.name}.{source.stem}.{key(source, flags)}"


def _is_intact(entry: Path) -> bool:
    """Whether `entry` holds exactly what was made. Raises CacheError where it is another user's."""
    if not os.path.lexists(entry):
        return False
    caches.check_own(entry)
    try:
        return read_json(entry / DIGESTS) == _digests(entry)
    except (OSError, DeltaRTError):
        return False


def _digests(entry: Path) -> dict[str, str]:
    files = sorted(path for path in entry.iterdir() if path.name != DIGESTS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    elif os.path.lexists(entry):
        entry.unlink()
