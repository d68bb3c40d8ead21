"""Memory of weights on ONNX Runtime: what is read as it is stored stays in the file's pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.calibration import SIZES
from support.cases import Export

VOCAB = 1 << 18  # of 128 values in BF16: the embedding and the head take 67 MB each
WHOLE = 2 * VOCAB * 128 * 2
SCRIPT = """
import json, sys
from pathlib import Path
from deltart.runtime.backends.ort import OrtBackend
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))
backend = OrtBackend(Path(sys.argv[1]), weights=sys.argv[2])
before = anonymous()
backend.session("model")
print(json.dumps([anonymous() - before, backend.held_bytes]))
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose weights are mostly its embedding and head."""
    folder = tmp_path_factory.mktemp("memory")
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB, mtp=False)), folder / "checkpoint", sparse=True)
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    return folder / "artifact"


@pytest.mark.parametrize(("weights", "held"), [("mapped", 0), ("folded", WHOLE)])
def test_stored_weights_are_not_copied(weights: str, held: int, artifact: Path) -> None:
    """Folded, the head alone is held: in float32, as large as both are in the file. The memory plan says so too."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(artifact), weights]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    grown, planned = json.loads(ran.stdout)
    assert grown == pytest.approx(held, abs=WHOLE / 6), f"{grown / 1e6:.0f} MB for {WHOLE / 1e6:.0f} MB"
    assert planned == pytest.approx(held, abs=WHOLE / 20)


@pytest.mark.parametrize("elsewhere", ["the checkpoint", "behind a link"])
def test_weights_outside_the_artifact(elsewhere: str, exported: Export, tmp_path: Path) -> None:
    """On another file system they can't be linked; ONNX Runtime follows no link out of a folder."""
    case = exported("heads-2-2")
    moved = tmp_path / "artifact"
    shutil.copytree(case.artifact, moved, copy_function=os.link)
    for path in (moved / "weights").iterdir():
        path.unlink()
        if elsewhere == "behind a link":
            path.symlink_to(case.checkpoint / path.name)
    inputs = text_inputs(np.array([[1, 2, 3]]), np.array([0], np.int32))
    here, there = (OrtBackend(a) for a in (case.artifact, moved))
    (expected,), (found,) = (b.run("model", b.new_state("model", 1, 8), inputs, ["logits"]) for b in (here, there))
    np.testing.assert_array_equal(found, expected)
