"""Element types against onnx, torch and the safetensors library."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from deltart.dtypes import DTYPES, E4M3, E4M3_MAX, DType
from deltart.export.weights import torch_dtype
from deltart.safetensors import read_file


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_format_means_the_same_type(dtype: DType, tmp_path: Path) -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy
    element = torch_dtype(dtype)
    save_file({"x": torch.zeros(3, dtype=element)}, tmp_path / "x.safetensors")
    _, (stored,) = read_file(tmp_path / "x.safetensors")
    assert (stored.dtype, stored.nbytes) == (dtype.stored, 3 * dtype.itemsize)
    assert dtype.itemsize == element.itemsize


def test_no_name_stands_for_two() -> None:
    for column in ("name", "short", "stored", "onnx", "numpy"):
        assert len({getattr(dtype, column) for dtype in DTYPES}) == len(DTYPES)


def test_the_largest_e4m3() -> None:
    assert torch.finfo(torch_dtype(E4M3)).max == E4M3_MAX
