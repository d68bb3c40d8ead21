"""The plan of the vision tower: built for GPUs that are not there, small, its weights bound as those of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltart.artifact import load_manifest
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.write import synthesize
from deltart.export.targets import lower_artifact
from deltart.manifest import MEDIA_INPUTS
from deltart.runtime.backends.gpu.engine_manifest import FRAME, PHASES, load_engine
from deltart.runtime.backends.tensorrt import library
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine

pytestmark = pytest.mark.skipif(
    "rtx" not in library.installed(), reason="tensorrt_rtx is not installed: no plan can be built here"
)


def test_an_engine_that_has_a_plan_of_the_tower(lowered_seeing: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(lowered_seeing, tmp_path / "artifact")
    lines: list[str] = []
    options = BuildOptions("rtx", slots=2, max_context=64, chunk=32)
    built = build_engine(artifact, options, log=lines.append)
    assert built == load_engine(artifact, "rtx")
    assert [*built.plans] == [*(f"{g}.{p}" for g in ("model", "mtp") for p in PHASES), f"vision.{FRAME}"]
    manifest, plan = load_manifest(artifact), built.plans[f"vision.{FRAME}"]
    assert manifest.vision is not None
    most = manifest.vision.max_patches
    assert plan.profile.axes == {"F": (1, 1, 1), "S": (4, 4096, most), "R": (1, 1024, most // 4)}
    assert [b.name for b in plan.by_role["input"]] == ["patches", "pos_index", "pos_weight", "cos", "sin"]
    assert {b.name for b in plan.by_role["weight"]} == set(manifest.graphs["vision"].weights)
    assert not plan.plugins and plan.scratch_bytes > 0
    assert any(line.startswith("vision.frame: ") and "scratch" in line for line in lines)
    for name, other in built.plans.items():
        media = [b for b in other.by_role["input"] if b.name in MEDIA_INPUTS]
        assert [b.name for b in media] == (list(MEDIA_INPUTS) if other.phase == "prefill" else []), name
        assert (other.profile.axes.get("M") == (1, 32, 32)) == bool(media)


@pytest.mark.slow
def test_the_published_27b(tmp_path: Path) -> None:
    """Sparse: its tower's plan, for three GPUs and pictures of up to 16384 patches."""
    synthesize("qwen3.6-27b-fp8", tmp_path / "checkpoint", sparse=True)
    artifact = tmp_path / "artifact"
    export_checkpoint(tmp_path / "checkpoint", artifact)
    lower_artifact(artifact, "tensorrt")
    plan = build_engine(artifact, BuildOptions("rtx")).plans[f"vision.{FRAME}"]
    assert len(plan.by_role["weight"]) == 333
    assert plan.profile.axes["S"][2] == 16384
    assert plan.nbytes < 20e6 and plan.seconds < 15
    assert plan.scratch_bytes < 450e6
