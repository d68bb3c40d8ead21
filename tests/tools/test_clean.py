"""`make clean` removes what make and deltart made, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.cases import Export
from tools.clean import clean

ROOT = Path(__file__).resolve().parents[2]


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_clean(exported: Export, tmp_path: Path) -> None:
    put(tmp_path, ".venv/.ready", ".venv/pyvenv.cfg", ".venv/bin/python", ".mypy_cache/CACHEDIR.TAG")
    put(tmp_path, ".ruff_cache/notes", "plugins/build/op.kernel.0123456789ab/a.so", "plugins/build/notes")
    artifacts = tmp_path / "artifacts"
    put(artifacts, "README.md", "bench/deltart-bench", "webapp/manifest.json", "calibrated/model.safetensors")
    for name in ("known", "noted", "unlinked", "elsewhere/real"):
        shutil.copytree(exported("heads-1-3").artifact, artifacts / name, copy_function=link)
    put(artifacts, "noted/notes.txt", "noted/engine/rtx/engine.json")
    weights = artifacts / "unlinked" / "weights" / "model.safetensors"
    shutil.copyfile(weights, tmp_path / "copy")
    shutil.move(tmp_path / "copy", weights)
    (artifacts / "link").symlink_to("elsewhere/real")
    left = clean(tmp_path)
    assert sorted(p.name for p in artifacts.iterdir()) == [
        "README.md", "calibrated", "elsewhere", "link", "noted", "unlinked", "webapp",
    ]  # fmt: skip
    assert (artifacts / "noted" / "manifest.json").exists() and (artifacts / "elsewhere/real/manifest.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ruff_cache", "artifacts", "plugins"]
    assert [p.name for p in (tmp_path / "plugins" / "build").iterdir()] == ["notes"]
    told = "\n".join(left)
    assert len(left) == 8 and all(
        name in told for name in ("notes.txt", "the only copy of model.safetensors", "a link")
    )


def link(source: str, target: str) -> None:
    """As an export does; the file keeps several names."""
    Path(target).hardlink_to(source)


def test_an_environment_of_ones_own_stays(tmp_path: Path) -> None:
    put(tmp_path, ".venv/pyvenv.cfg")
    (tmp_path / ".pytest_cache").symlink_to(".venv")
    assert len(clean(tmp_path)) == 2 and (tmp_path / ".venv" / "pyvenv.cfg").exists()


def test_it_needs_no_environment() -> None:
    """Of the packages only deltart's own modules: the environment may be gone."""
    code = "import sys, tools.clean; print(*(n for n in sys.modules if n.split('.')[0] in ('numpy', 'torch', 'onnx')))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
