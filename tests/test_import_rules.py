"""The import rules of DESIGN.md, read off the source: who may import what, and that no two modules need each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deltart", "export", "plugins", "runtime", "calib")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "build" not in path.parts]
# Floors from the ground up. A module imports what is below its floor, and its own room; rooms of one floor are apart.
FLOORS = (
    ("ground",), ("plugins", "text"), ("export", "runtime"), ("calib", "verify", "planner"), ("latency",), ("front",),
)  # fmt: skip
ROOMS = {name for floor in FLOORS for name in floor} - {"ground", "text", "front"}
TENSORRT, NATIVE = "deltart.runtime.backends.tensorrt", "deltart.runtime.backends.native"
BUILDERS = (f"{TENSORRT}.builder", f"{NATIVE}.builder")
# Importer, what it never imports, and what is let through on either side.
RULES = (
    ("deltart.runtime.schedule", TENSORRT, ()),
    ("deltart.runtime.server", TENSORRT, ()),
    ("deltart.runtime.text", "deltart.runtime", ("deltart.runtime.text",)),
    ("deltart.runtime.sampling", "deltart.runtime", ("deltart.runtime.sampling",)),
    ("deltart.runtime.vision", "deltart.runtime", ("deltart.runtime.vision",)),
    ("deltart.runtime.backends", "deltart.runtime", ("deltart.runtime.backends", "deltart.runtime.sampling")),
    *(("deltart.runtime", builder, ()) for builder in BUILDERS),
    ("deltart.runtime", "onnx", ()),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("deltart", *parts) if parts[0] != "deltart" else parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node)


def imported(path: Path) -> Iterator[str]:
    """Names of modules, and of what is taken from them; imports inside functions count."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needed(path: Path) -> Iterator[str]:
    """The modules that a module imports; a package only for what it holds itself."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else f"{node.module}" for name in full)


GRAPH = {name: (set(needed(path)) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room(name: str) -> str:
    """A module's room. Entry points and the package itself, which import what they are asked for, are the front."""
    parts = name.split(".")
    if len(parts) == 1 or parts[-1] == "__main__" or parts[1] == "cli":
        return "front"
    if parts[1:3] == ["runtime", "text"]:
        return "text"  # needs nothing of the runtime, and checks what an export brings along
    return parts[1] if parts[1] in ROOMS else "ground"


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; none where there is no circle."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    while blind := [name for name in left if not any(name in others for others in left.values())]:
        for name in blind:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    for name in imported(path):
        assert not starts(name, *FOLDERS[1:]), f"{path}: say deltart.{name}"
        if place[0] == "runtime":
            assert not starts(name, "torch", "transformers", "deltart.export"), f"{path}: runtime imports {name}"
        if starts(name, "tensorrt", "tensorrt_rtx_bindings"):
            assert place[:3] == ("runtime", "backends", "tensorrt"), f"{path}: imports {name}"


def test_nothing_is_imported_from_above() -> None:
    above = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if room(name) != room(other) and other != "deltart" and floor(other) >= floor(name)
    ]
    assert not above
    assert not [name for name, others in GRAPH.items() if "deltart" in others and room(name) != "front"]


def test_no_modules_import_one_another() -> None:
    assert circle(GRAPH) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


@pytest.mark.parametrize(("importer", "never", "but"), RULES)
def test_rooms_that_keep_apart(importer: str, never: str, but: tuple[str, ...]) -> None:
    for name, path in MODULES.items():
        if starts(name, importer) and not starts(name, *BUILDERS):  # what builds plans is no part of an engine
            assert not [other for other in imported(path) if starts(other, never) and not starts(other, *but)], name


def test_bodies_serve_export_and_calibration_alone() -> None:
    """They import torch, which an engine does without."""
    for name, others in GRAPH.items():
        if room(name) not in ("export", "calib") and not name.endswith(".bodies"):
            assert not [other for other in others if other.endswith(".bodies")], name


def test_there_are_sources() -> None:
    assert len(SOURCES) > 30
    assert {room(name) for name in MODULES} == {name for rooms in FLOORS for name in rooms}
