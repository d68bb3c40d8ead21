"""The linear layer's rivals and the estimate of a whole token, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.kernels import __main__ as bench
from bench.kernels import peers_linear, token
from bench.kernels.device import Host
from bench.kernels.run import Run
from bench.kernels.table import Row

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]


def meta(rows: int, n: int, k: int) -> SimpleNamespace:
    """Buffers of a linear layer without memory."""
    sizes = {"x": ((1, rows, k), torch.bfloat16), "weight": ((n, k), torch.uint8)}
    sizes["weight_scale_inv"] = ((n // 128, -(-k // 128)), torch.bfloat16)
    return SimpleNamespace(tensors={name: torch.empty(s, dtype=d, device="meta") for name, (s, d) in sizes.items()})


@pytest.mark.parametrize("n, k", [(5120, 17408), (17408, 5120), (256, 640)])
def test_torch_takes_the_block_scales(n: int, k: int) -> None:
    """torch's own check of shapes and strides, which is what its CUDA build runs before cuBLASLt."""
    y = peers_linear.scaled_mm()(meta(256, n, k))
    assert y.shape == (256, n) and y.dtype == torch.bfloat16


def test_torch_refuses_other_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_linear, "block_scales", lambda scale: scale.float().t().contiguous())
    with pytest.raises(RuntimeError, match="1x128 x 128x128"):
        peers_linear.scaled_mm()(meta(256, 5120, 17408))


def test_block_scales_are_padded_columns() -> None:
    scale = torch.arange(10.0).reshape(2, 5)
    found = peers_linear.block_scales(scale)
    assert found.shape == (8, 2) and found.stride() == (1, 8)
    assert (found[:5] == scale.t()).all() and (found[5:] == 0).all()


def rows(without: str = "") -> list[Row]:
    names = [*token.ONE_BY_ONE, *token.LINEARS, *token.LAYERS, token.FP8_HEAD] + [
        ("joined", f"rope, attention B=1 T=1 past={past}") for past in token.PASTS
    ]
    return [Row(section, f"{case} *", us=2.0) for section, case in dict.fromkeys(names) if case != without]


def test_a_token_is_the_sum_of_its_calls() -> None:
    run = Run(Host(), 0, rows=rows())
    one_by_one, alone, short, short_fp8, long, long_fp8 = token.token(run)
    assert one_by_one.us == 2.0 * (48 * 3 + 16 * 2 + 32 + 64 + 64)
    assert alone.us == 2.0 * (48 + 16 + 48 + 16 + 64 + 64)
    assert short.us == long.us == alone.us + 2.0 * (48 + 2 + 16)
    assert short_fp8.us == long_fp8.us == short.us
    assert any("token/s of at most 123" in note for note in short.notes)
    run = Run(Host(), 0, rows=rows(without="rope, attention B=1 T=1 past=1024"))
    _, alone, short, *_ = token.token(run)
    assert alone.us and short.us is None and short.notes == ["not measured: joined rope, attention B=1 T=1 past=1024"]


def test_cases_of_one_beginning_are_told_apart() -> None:
    found = [Row("norm", "T=1024", us=9.0), Row("norm", "T=1", us=1.0)]
    assert token.together(Run(Host(), 0, rows=found), {("norm", "T=1"): 3}, "").us == 3.0


@pytest.mark.slow
def test_dry_run_exercises_everything(tmp_path: Path) -> None:
    assert bench.main(["--dry-run", "--out", str(tmp_path)]) == 0
    found = {row["case"]: row for row in json.loads((tmp_path / "linear.json").read_text())["rows"]}
    assert {"small M=300 w8a8", "small M=300 w8a8 wgmma", "small M=300 w8a8 wgmma product"} <= set(found)
    assert "1 parts of K" not in found["small M=70 w8a8 wgmma"]["notes"]
    (whole,) = json.loads((tmp_path / "token.json").read_text())["rows"]
    assert whole["us"] > 0


CHECK = """
import functools, ml_dtypes, numpy as np, torch
from bench.kernels import triton_linear as kernels
from deltart.plugins.fp8_linear import inputs
from deltart.plugins.fp8_linear.reference import dequantize, quantize, scaled
from deltart.plugins.tolerance import relative_rms

def tensor(a):
    bits = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}.get(a.dtype.name)
    a = np.ascontiguousarray(a)
    return torch.from_numpy(a.view(bits[0])).view(bits[1]) if bits else torch.from_numpy(a)

class With:
    def __init__(self, kernel, **sizes): self.kernel, self.sizes = kernel, sizes
    def __getitem__(self, grid): return functools.partial(self.kernel[grid], **self.sizes)

given = inputs.make(inputs.Shape(tokens=70, n=200, k=272), 0)
W = dequantize(given["weight"].astype(np.float64), given["weight_scale_inv"].astype(np.float64))
weight, scale = tensor(given["weight"]), tensor(given["weight_scale_inv"])
y = torch.full((200,), torch.nan)
kernels.gemv(tensor(given["x"][0, 0]), weight, scale, y, With(kernels.gemv_kernel, ROWS=16))
assert relative_rms(y.numpy(), W @ given["x"][0, 0].astype(np.float64)) < 1e-6
codes, x_scale = quantize(given["x"][0].astype(np.float32))
y = torch.full((70, 200), torch.nan)
tiles = With(kernels.gemm_kernel, TILE_M=64, TILE_N=128, GROUP=8)
kernels.gemm(tensor(codes), tensor(x_scale), weight, scale, y, tiles)
assert relative_rms(y.numpy(), scaled(codes, x_scale) @ W.T) < 1e-6
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_rivals_against_float64() -> None:
    """Under Triton's interpreter, in a process of its own: the choice is made when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", CHECK], env=environment, cwd=ROOT, check=True)
