"""Element types: one row a type, with the name that each format has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """An element type.

    Args:
        name: in manifests, engine.json, TensorRT and torch ("bfloat16").
        short: in kernels' names and tables ("bf16").
        stored: in safetensors files ("BF16").
        onnx: the number in onnx.TensorProto.DataType.
        numpy: the numpy type, ml_dtypes' where numpy has none.
    """

    name: str
    short: str
    stored: str
    onnx: int
    numpy: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize


F32 = DType("float32", "f32", "F32", 1, np.dtype(np.float32))
F16 = DType("float16", "f16", "F16", 10, np.dtype(np.float16))
BF16 = DType("bfloat16", "bf16", "BF16", 16, np.dtype(ml_dtypes.bfloat16))
E4M3 = DType("float8_e4m3fn", "e4m3", "F8_E4M3", 17, np.dtype(ml_dtypes.float8_e4m3fn))
I8 = DType("int8", "i8", "I8", 3, np.dtype(np.int8))
U8 = DType("uint8", "u8", "U8", 2, np.dtype(np.uint8))
I32 = DType("int32", "i32", "I32", 6, np.dtype(np.int32))
I64 = DType("int64", "i64", "I64", 7, np.dtype(np.int64))

DTYPES = (F32, F16, BF16, E4M3, I8, U8, I32, I64)
BY_NAME: Mapping[str, DType] = {d.name: d for d in DTYPES}
BY_SHORT: Mapping[str, DType] = {d.short: d for d in DTYPES}
BY_STORED: Mapping[str, DType] = {d.stored: d for d in DTYPES}
BY_ONNX: Mapping[int, DType] = {d.onnx: d for d in DTYPES}
BY_NUMPY: Mapping[np.dtype[Any], DType] = {d.numpy: d for d in DTYPES}

E4M3_MAX = 448.0  # the largest finite value of E4M3
