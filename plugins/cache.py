"""Compiled kernels, kept by the hash of their text, headers, compiler and flags."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "build"
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


def sources(source: Path) -> list[Path]:
    """`source` and every local header it reaches, in the order of first use."""
    found: list[Path] = []
    pending = [source.resolve()]
    while pending:
        path = pending.pop(0)
        if path in found:
            continue
        found.append(path)
        pending += [(path.parent / name).resolve() for name in INCLUDE.findall(path.read_text())]
    return found


def key(source: Path, flags: tuple[str, ...]) -> str:
    """Twelve hex digits of the texts that reach the compiler and how it is called."""
    digest = hashlib.sha256("\0".join(flags).encode())
    for path in sources(source):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def build(source: Path, flags: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` fills, made once per key. It gets its name only when it is whole."""
    op = source.resolve().parent.name
    final = DIRECTORY / f"{op}.{source.stem}.{key(source, flags)}"
    if final.exists():
        return final
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=DIRECTORY, prefix="partial."))
    try:
        make(partial)
        if not final.exists():
            partial.rename(final)
    except OSError:
        if not final.exists():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final
