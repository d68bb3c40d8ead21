"""`make clean`: removes what make and deltart made in this checkout, and names what it does not know and leaves."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from deltart.errors import OutputError
from deltart.files import clear
from deltart.folders import remove
from deltart.manifest import ARTIFACT

CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache")
CACHE_TAG = "CACHEDIR.TAG"  # https://bford.info/cachedir/: the three tools write it
ENVIRONMENT = (".ready", "pyvenv.cfg")  # the first is the Makefile's own
COMPILED = re.compile(r"\w+\.\w+\.[0-9a-f]{12}|partial\.\w+")  # deltart.plugins.cache
BENCH_TAG = "deltart-bench"  # bench/calibration.py


def clean(root: Path) -> list[str]:
    """Remove what is known in the checkout `root`; a line for everything that was left."""
    left = [*_tagged(root / ".venv", ENVIRONMENT)]
    for name in CACHES:
        left += _tagged(root / name, (CACHE_TAG,))
    left += _compiled(root / "plugins" / "build")
    for entry in sorted((root / "artifacts").iterdir()) if (root / "artifacts").is_dir() else ():
        if entry.name != "README.md":
            left += _artifact(entry)
    return left


def _tagged(folder: Path, tags: tuple[str, ...]) -> Iterator[str]:
    """Remove a folder that carries all the `tags`."""
    if folder.is_symlink() or (folder.exists() and not all((folder / tag).is_file() for tag in tags)):
        yield f"{folder}: not made by make ({' and '.join(tags)} would be in it)"
    elif folder.exists():
        shutil.rmtree(folder)


def _compiled(folder: Path) -> Iterator[str]:
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_symlink() or not entry.is_dir() or not COMPILED.fullmatch(entry.name):
            yield f"{entry}: no compiled kernel"
        else:
            shutil.rmtree(entry)


def _artifact(entry: Path) -> Iterator[str]:
    """Remove an artifact, unless a checkpoint's weights would go with it, or what a benchmark left."""
    clear(entry.parent)
    if not entry.exists():
        return
    if not entry.is_symlink() and (entry / BENCH_TAG).is_file():
        shutil.rmtree(entry)
        return
    last = [file.name for file in (entry / "weights").glob("*") if file.is_file() and file.stat().st_nlink == 1]
    try:
        if entry.is_symlink():
            raise OutputError(f"{entry} is a link")
        if last:
            raise OutputError(f"{entry} has the only copy of {', '.join(sorted(last)[:3])}")
        remove(entry, ARTIFACT)
    except OutputError as error:
        yield error.found


if __name__ == "__main__":
    kept = clean(Path(__file__).resolve().parents[1])
    print("".join(f"left: {line}\n" for line in kept), end="", file=sys.stderr)
