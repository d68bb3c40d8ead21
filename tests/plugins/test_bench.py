"""The benchmark without a GPU: its dry run, its resume, and its torch peers against float64."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.kernels import __main__ as bench
from bench.kernels import peers
from bench.kernels.sections.gated_delta_rule import one_group
from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.tolerance import relative_rms

torch = pytest.importorskip("torch")


def tensors(arrays: dict[str, np.ndarray]) -> SimpleNamespace:
    """The arrays as CPU tensors, where a peer looks for its own."""
    return SimpleNamespace(tensors={name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def test_dry_run_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--dry-run", "--out", str(tmp_path), "--section", "decode", "conv"]
    assert bench.main([*command, "--minutes", "0"]) == 1
    assert "left for the next run: decode conv" in capsys.readouterr().out
    assert bench.main(command) == 0
    assert "decode ..." in capsys.readouterr().out
    saved = json.loads((tmp_path / "decode.json").read_text())
    assert all(row["passed"] and 0 < row["error"] < 4e-3 for row in saved["rows"])
    assert bench.main(command) == 0
    assert "..." not in capsys.readouterr().out
    saved["rows"][0]["passed"] = False
    (tmp_path / "decode.json").write_text(json.dumps(saved))
    assert bench.main(command) == 1


def test_one_group_is_its_part_of_the_whole() -> None:
    shape = inputs.Shape(slots=2, tokens=3, key_heads=2, value_heads=6, key_dim=32, value_dim=16)
    given = inputs.make(shape, 0)
    part, part_shape, heads = one_group(given, shape, 1)
    whole, found = inputs.expected(shape, given), inputs.expected(part_shape, part)
    np.testing.assert_allclose(found[0], whole[0].reshape(2, 3, 6, 16)[:, :, heads].reshape(2, 3, -1))
    np.testing.assert_allclose(found[1], whole[1][:, heads])


def test_torch_peers_compute_the_same_thing() -> None:
    shape = inputs.Shape(slots=2, key_heads=2, value_heads=6, dtype="f32", A_log_dtype="f32", dt_bias_dtype="f32")
    given = inputs.make(shape, 0)
    found = peers.torch_recurrent(shape)(tensors(given)).numpy()
    assert relative_rms(found.reshape(2, 1, -1), inputs.expected(shape, given)[0]) < 1e-5
    conv = conv_inputs.make(conv_inputs.Shape(2, 5, 64, "f32", "f32"), 0)
    assert relative_rms(peers.torch_conv(tensors(conv)).numpy(), conv_inputs.expected(conv)[0]) < 1e-6
