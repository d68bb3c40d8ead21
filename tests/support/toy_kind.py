"""A small kind of folder, with a marker, for the tests of output folders."""

from __future__ import annotations

from pathlib import Path

from deltart.folders import Marker, staged


def written(folder: Path) -> list[str] | None:
    """A toy kind: the marker's content counts, not its name."""
    try:
        ours = (folder / "marker").read_text().startswith("ours")
    except (OSError, UnicodeDecodeError):
        return None
    return ["marker", "*.onnx", "weights/*.bin", "engine/*/*.plan"] if ours else None


TOY = Marker("a toy", "marker", written)


def fill(folder: Path, version: str) -> None:
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "w.bin").write_text(version)
    (folder / "model.onnx").write_text(version)
    (folder / f"only-{version}.onnx").write_text(version)
    (folder / "marker").write_text(f"ours {version}")


def write(output: Path, version: str = "new", **options: object) -> None:
    with staged(output, TOY, **options) as folder:  # type: ignore[arg-type]
        fill(folder / "x", version)
        for entry in (folder / "x").iterdir():
            entry.rename(folder / entry.name)
        (folder / "x").rmdir()
