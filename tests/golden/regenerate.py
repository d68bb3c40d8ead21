"""Rewrites the golden prints of the traced blocks: `python tests/golden/regenerate.py`, then read `git diff`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.cases import CASES, VOCAB  # found through the line above

sizes, storage = CASES["fp8"]
with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    write_checkpoint(causal_lm(text_config(**sizes, vocab=VOCAB, max_position=2048)), folder / "in", **storage)
    export_checkpoint(folder / "in", folder / "out")
    for name in ("model.onnx", "mtp.onnx"):
        for function in onnx.load(folder / "out" / name, load_external_data=False).functions:
            if function.domain == "deltart.layers":
                text = onnx.printer.to_text(function)
                (Path(__file__).parent / f"{function.name}.txt").write_text(text)
