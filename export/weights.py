"""Binds parameters to checkpoint tensors by name."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from deltart.dtypes import BF16, BY_STORED, E4M3, F16, F32, U8, DType
from deltart.errors import CheckpointError
from deltart.export.checkpoint import Checkpoint
from deltart.export.formats import Linears, is_skipped
from deltart.export.graph import Block
from deltart.export.spec import Fp8Spec, ModelSpec
from deltart.safetensors import TensorInfo

PLAIN = tuple(dtype.stored for dtype in (BF16, F16, F32))
ALLOWED = {torch.float8_e4m3fn: (E4M3.stored,), torch.uint8: (U8.stored,)}  # by a parameter's own type, else PLAIN
WEIGHTS_FOLDER = "weights"


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's object of an element type."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def build_module(block: Block, spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    """The block's module on the meta device, each parameter with the shape and dtype that the checkpoint stores.

    Raises:
        CheckpointError: a tensor is missing, misshapen, of an unexpected dtype, or contradicts the skip list.
    """
    renamed = {} if "" in block.prefixes else block.prefixes
    linears = Linears(spec.fp8, spec.compressed, block.prefixes.get("", ""), checkpoint, renamed)
    with torch.device("meta" if block.prefixes else "cpu"):
        module = block.make(linears)
    for name, parameter in list(module.named_parameters()):
        info = _expect(checkpoint, block.tensor_name(name), parameter, spec)
        owner = module.get_submodule(name.rpartition(".")[0])
        stored = torch.empty(info.shape, dtype=torch_dtype(BY_STORED[info.dtype]), device="meta")
        setattr(owner, name.rpartition(".")[2], nn.Parameter(stored, requires_grad=False))
    return module


def load_parameters(module: nn.Module, block: Block, checkpoint: Checkpoint) -> None:
    """Replace the module's meta parameters by the checkpoint's values, read from its files."""
    for name, _ in list(module.named_parameters()):
        owner = module.get_submodule(name.rpartition(".")[0])
        value = load_tensor(checkpoint, block.tensor_name(name))
        setattr(owner, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))


def load_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor in its stored dtype, read into memory once."""
    return read_tensor(checkpoint, checkpoint.at(name))


def read_tensor(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """The same, of any place in the checkpoint's files."""
    raw = np.fromfile(checkpoint.folder / info.file, np.uint8, info.nbytes, offset=info.offset)
    return torch.from_numpy(raw).view(torch_dtype(BY_STORED[info.dtype])).view(info.shape)


def external_initializer(info: TensorInfo) -> onnx.TensorProto:
    """An ONNX initializer that refers to the tensor's bytes in the vendor's own file."""
    tensor = onnx.TensorProto(name=info.name, data_type=BY_STORED[info.dtype].onnx, dims=info.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = {"location": f"{WEIGHTS_FOLDER}/{info.file}", "offset": info.offset, "length": info.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _expect(checkpoint: Checkpoint, name: str, parameter: nn.Parameter, spec: ModelSpec) -> TensorInfo:
    info = checkpoint.get(name) or checkpoint.regions.get(name)
    if info is None:
        raise CheckpointError(f"tensor '{name}' is missing", f"{list(parameter.shape)}", _missing_advice(name, spec))
    allowed = ALLOWED.get(parameter.dtype, PLAIN)
    if info.dtype not in allowed:
        raise CheckpointError(
            f"tensor '{name}' is stored as {info.dtype}",
            " or ".join(allowed),
            _dtype_advice(name, spec.fp8),
        )
    if tuple(parameter.shape) != info.shape:
        raise CheckpointError(
            f"tensor '{name}' has shape {list(info.shape)}",
            f"{list(parameter.shape)}, as config.json implies",
            "config.json and weights are of different models"
            + (f"; missing, and taken from transformers: {', '.join(spec.defaults)}" if spec.defaults else ""),
        )
    return info


def _missing_advice(name: str, spec: ModelSpec) -> str:
    if name.startswith(spec.mtp_prefix):
        return "the MTP head is incomplete: download it again, or export without it (mtp=False, --no-mtp)"
    if name == f"{spec.head_prefix}weight":
        return "the checkpoint is incomplete; or, if the head is the embedding, set tie_word_embeddings in config.json"
    if name.endswith("_scale_inv"):
        return "the checkpoint is incomplete, or its FP8 weights are not scaled by blocks of 128"
    return "the checkpoint is incomplete"


def _dtype_advice(name: str, fp8: Fp8Spec | None) -> str:
    module = name.rpartition(".")[0]
    if fp8 is not None and is_skipped(module, fp8.modules_to_not_convert):
        return f"modules_to_not_convert lists '{module}', yet it is quantized: correct the list"
    return "quantization_config is missing or the file was converted wrongly"
