"""The import rules of DESIGN.md, read off the source: who may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deltart", "export", "plugins", "runtime", "calib")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "build" not in path.parts]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    for name in imported(path):
        assert not starts(name, *FOLDERS[1:]), f"{path}: say deltart.{name}"
        if place[0] == "runtime":
            assert not starts(name, "torch", "transformers", "deltart.export"), f"{path}: runtime imports {name}"
        if starts(name, "tensorrt", "tensorrt_rtx_bindings"):
            assert place[:2] == ("runtime", "backends"), f"{path}: imports {name}"


def test_there_are_sources() -> None:
    assert len(SOURCES) > 30
