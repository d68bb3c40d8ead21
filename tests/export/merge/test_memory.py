"""Peak resident memory of a merge: weights pass through in blocks, however large one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.adapters import write_adapter
from support.calibration import SIZES
from support.peak import PEAK

VOCAB = 1 << 18  # of 128 values in BF16: 67 MB; their sums in float32, all at once, take 134 MB several times
LARGEST = VOCAB * 128 * 2
SCRIPT = f"""
import json, sys
from pathlib import Path
from deltart.export.merge.pipeline import merge
{PEAK}
before = peak()
merge(*map(Path, sys.argv[1:]))
print(json.dumps([before, peak()]))
"""


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_peak(dora: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB, mtp=False)), base, sparse=True)
    modules = ["lm_head", "model.embed_tokens"][: 1 if dora else 2]
    config = {"use_dora": dora}
    adapter = write_adapter(tmp_path / "adapter", base, modules, config=config)
    command = [sys.executable, "-c", SCRIPT, str(base), str(adapter), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    before, peak = json.loads(ran.stdout)
    assert peak <= 2 * LARGEST + 0.5e9
    assert peak - before <= LARGEST + 64e6, f"{before / 1e6:.0f} MB of imports, then {peak / 1e6:.0f} MB"
