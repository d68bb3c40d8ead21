"""The native plans of the published 35B-A3B in FP8, sparse: what a token takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.write import synthesize
from deltart.export.targets import lower_artifact
from deltart.runtime.backends.native.plan import read_plan
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine

pytestmark = pytest.mark.slow
LAUNCHES = {"model": 295, "mtp": 17}  # of a decoded token without the sampler's three
LAYERS = {"model": 40, "mtp": 1}


def test_norms_are_no_launches_of_a_decoded_token(tmp_path: Path) -> None:
    synthesize("qwen3.6-35b-a3b-fp8", tmp_path / "checkpoint", sparse=True)
    artifact = tmp_path / "artifact"
    export_checkpoint(tmp_path / "checkpoint", artifact)
    lower_artifact(artifact, "native")
    engine = build_engine(artifact, BuildOptions("native", chunk=1024))
    for name, entry in engine.plans.items():
        graph, phase = name.split(".")
        if phase == "prefill":
            assert entry.plugins["Fp8SparseMoe"] == LAYERS[graph]
            assert entry.plugins["ResidualRmsNorm"] == 2 * LAYERS[graph]
            continue
        path = artifact / "engine" / "native" / entry.file
        assert read_plan(path.read_bytes(), path).launches == LAUNCHES[graph], name
        assert entry.plugins["Fp8SparseMoeNorm"] == entry.plugins["Fp8LinearNorm"] == LAYERS[graph]
        assert "ResidualRmsNorm" not in entry.plugins
