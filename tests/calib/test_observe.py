"""Statistics of the inputs against what hooks on transformers' linears see, row by row and without padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deltart.calib import observe as module_of_observe
from deltart.calib.forward import batches_of, sweep
from deltart.calib.observe import observe
from deltart.calib.selection import candidates
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import read_spec
from support.calibration import VOCAB, load


@pytest.mark.parametrize("width", [4096, 128])
def test_moments_equal_transformers(tiny: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_observe, "MAX_WIDTH", width)
    monkeypatch.setattr(module_of_observe, "BAND", 48)
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, VOCAB, int(size)).tolist() for size in (70, 3, 33, 64, 1)]
    model, seen = load(tiny), {}
    for name, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0].double()))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    spec, tensors = read_spec(tiny), Checkpoint(tiny)
    sites = list(candidates(spec, tensors))
    compared = 0
    for step in sweep(spec, tensors, batches_of(rows)):
        found = observe(step, [site for site in sites if site.block == step.key])
        assert (found.kv is not None) == (step.key in ("model.layers.3", "mtp.layers.0"))
        for site in (site for site in sites if site.block == step.key):
            own = found.inputs[site.modules[0]]
            if step.key == "mtp.layers.0":
                assert own.tokens == sum(len(row) - 1 for row in rows)
                continue
            x = torch.cat(seen[site.modules[-1]])
            assert own.tokens == len(x) and own.amax == pytest.approx(float(x.abs().max()), rel=1e-4)
            for H, part in zip(own.moments, x.split(width, dim=1), strict=True):
                expected = part.T @ part
                assert float((H - expected).norm() / expected.norm()) <= 1e-5
            compared += 1
    assert compared == 16


def test_sites_hold_linears_that_read_the_same_input(tiny: Path) -> None:
    groups = [tuple(m.rpartition(".")[2] for m in s.modules) for s in candidates(read_spec(tiny), Checkpoint(tiny))]
    assert groups[:4] == [("in_proj_qkv", "in_proj_z"), ("out_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert groups[-4:] == [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
