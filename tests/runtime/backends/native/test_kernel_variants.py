"""`python -m bench.engine.variants` over host memory: the kernels of another source tree under this tree's launches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.engine import variants


@pytest.mark.slow
def test_another_trees_kernels_are_run(native_nano: Callable[[str], Path], tmp_path: Path) -> None:
    tree = Path(shutil.copytree(variants.PLUGINS, tmp_path / "plugins"))
    call = [str(native_nano("fp8")), f"other={tree}", "--dry-run", "--out", str(tmp_path / "rows.json")]
    assert variants.main(call) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    kinds = {(row["kernels"], row["context"], row["overlapping"]) for row in rows}
    assert kinds == {(name, 0, way) for name in ("here", "other") for way in (True, False)}
    assert all(0 < row["min_us"] <= row["median_us"] for row in rows)
    kernel = tree / "gated_attention" / "kernel.cu"
    kernel.write_text(kernel.read_text() + "no C++ at all;\n")
    assert variants.main(call) == 2
