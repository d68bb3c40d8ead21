"""The native plans of the published 27B in FP8 and in int4, sparse: all nodes have kernels, what they take is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.write import synthesize
from deltart.export.targets import lower_artifact
from deltart.runtime.backends.native.plan import read_plan
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine

pytestmark = pytest.mark.slow
LAUNCHES = 325  # of a decoded token without the sampler's three
MB = {"decode": 2, "speculate": 14, "prefill": 134}  # of scratch, at 1024 tokens a call


@pytest.mark.parametrize(("preset", "joined"), [("qwen3.6-27b-fp8", "Fp8"), ("qwen3.6-27b-int4", "Int4")])
def test_plans_of_all_phases(preset: str, joined: str, tmp_path: Path) -> None:
    synthesize(preset, tmp_path / "checkpoint", sparse=True)
    artifact = tmp_path / "artifact"
    export_checkpoint(tmp_path / "checkpoint", artifact)
    lower_artifact(artifact, "native")
    engine = build_engine(artifact, BuildOptions("native", chunk=1024))
    assert sorted(engine.plans) == sorted(f"{g}.{p}" for g in ("model", "mtp") for p in MB)
    assert sum(entry.seconds for entry in engine.plans.values()) < 10
    for name, entry in engine.plans.items():
        path = artifact / "engine" / "native" / entry.file
        plan = read_plan(path.read_bytes(), path)
        assert entry.scratch_bytes == plan.arena_bytes < MB[entry.phase] * 1e6, name
        if name == "model.decode":
            assert plan.launches <= LAUNCHES
            assert entry.plugins[f"{joined}LinearNorm"] == 2 * 64 and "ResidualRmsNorm" not in entry.plugins
            assert entry.plugins["ConvGatedDeltaNorm"] == 48 and "GatedRMSNorm" not in entry.plugins
            assert entry.plugins["RopeGatedAttention"] == 16 and "QkNormRope" not in entry.plugins
        if name == "model.prefill":
            assert entry.plugins["ResidualRmsNorm"] == 2 * 64 and entry.plugins["GatedRMSNorm"] == 48
