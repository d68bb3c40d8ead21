"""Writes checkpoints that have no trained weights: the right names, dtypes and shapes, random or sparse."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deltart.dtypes import BF16, BY_STORED, E4M3, E4M3_MAX, I32, I64
from deltart.errors import CheckpointError
from deltart.export.formats import Linears
from deltart.export.formats.experts import ExpertRun, Int4ExpertRun
from deltart.export.formats.fp8_block import is_quantized, quantization_config
from deltart.export.formats.int4_group import Int4GroupLinear, group_config
from deltart.export.models.registry import graphs_of
from deltart.export.regions import GROUPS, PACKED, PACKED_SCALE, PACKED_SHAPE
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.synthetic.packed import random_packed
from deltart.export.synthetic.presets import FILE_PER_LAYER, PRESETS, Config
from deltart.folders import Marker, staged
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.safetensors import INDEX, FilePlan, TensorInfo, index_of, plan_file, shard_name, unplaced, written_order

SHARD_BYTES = 5_000_000_000
CHECKPOINT = Marker("a checkpoint", "config.json", lambda folder: None)  # none is ever replaced
SCALE = "_scale_inv"  # behind the name of the weight that it scales
SCALES = (SCALE, PACKED_SCALE)
HEAD = "lm_head"
LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.")
Log = Callable[[str], None]
INITIALIZER_RANGE = 0.02  # of embedding and head, as the family is initialised; other matrices preserve variance


def synthesize(preset: str, output: Path, *, seed: int = 0, sparse: bool = False, log: Log = lambda step: None) -> None:
    """Write a checkpoint of `preset` to the new folder `output`.

    Args:
        seed: seeds every tensor by its name, so a tensor does not depend on the others.
        sparse: leave the data as holes (zeros that take no disk); names, dtypes, shapes and sizes stay true.
        log: called with a line for every file.

    Raises:
        CheckpointError: the preset is unknown.
        OutputError: `output` exists and is not empty, or can't be written; nothing is left under its name.
    """
    if preset not in PRESETS:
        raise CheckpointError(f"no preset '{preset}'", f"one of {', '.join(PRESETS)}")
    write_checkpoint(
        PRESETS[preset](),
        output,
        quantized=preset.endswith("-fp8"),
        int4_group=128 if preset.endswith("-int4") else None,
        file_per_layer=preset in FILE_PER_LAYER,
        seed=seed,
        sparse=sparse,
        log=log,
    )


def write_checkpoint(
    config: Config, output: Path, *, quantized: bool = False, dtype: str = "BF16", scale_dtype: str = "BF16",
    int4_group: int | None = None, file_per_layer: bool = False, seed: int = 0, sparse: bool = False,
    log: Log = lambda step: None,
) -> None:  # fmt: skip
    """Write a checkpoint of `config`, each file in the order of the safetensors library.

    Args:
        quantized: add the vendor's FP8 block-128 format and its skip list.
        int4_group: pack the same linears and the head as compressed-tensors does, in groups of so many values.
        file_per_layer: name the files "layers-0" and so on, "mtp" and "outside", as the vendor's FP8 models have them;
            files of SHARD_BYTES otherwise.
    """
    with staged(output, CHECKPOINT) as folder:
        if quantized or int4_group:
            config = config | {"quantization_config": _quantization_config(config, folder, int4_group)}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        plans = sorted(tensor_plans(read_spec(folder), dtype, scale_dtype), key=lambda plan: plan.name)
        shards = _by_layer(plans) if file_per_layer else _shards(plans)
        files = [plan_file(name, written_order(shard), {"format": "pt"}) for name, shard in shards.items()]
        for file in files:
            log(f"writing {file.name} ({file.size / 1e9:.1f} GB)")
            _write_shard(folder, file, seed, sparse)
        if len(files) > 1:
            index = index_of(info for file in files for info in file.tensors.values())
            (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def tensor_plans(spec: ModelSpec, dtype: str = "BF16", scale_dtype: str = "BF16") -> Iterator[TensorInfo]:
    """Every tensor of a checkpoint of `spec`, vision tower included."""
    seen = set()
    for graph in graphs_of(spec, torch.float32, mtp=True, vision=True):
        for block in graph.blocks:
            with torch.device("meta"):
                module = block.make(Linears(spec.fp8, spec.compressed, block.prefixes.get("", "")))
            for parameter, value in module.named_parameters():
                stored = E4M3.stored if value.dtype == torch.float8_e4m3fn else dtype
                for name, kind, shape in _members(module, parameter, tuple(value.shape), stored):
                    name = block.tensor_name(name)
                    if name not in seen:
                        yield unplaced(name, scale_dtype if name.endswith(SCALES) else kind, shape)
                    seen.add(name)


def _members(
    module: nn.Module, parameter: str, shape: tuple[int, ...], stored: str
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes of the tensors behind a parameter: itself, or those in its region."""
    owner, _, kind = parameter.rpartition(".")
    holder = module.get_submodule(owner)
    if isinstance(holder, ExpertRun):
        experts = owner.partition(".runs.")[0]
        yield from ((f"{experts}.{name}", stored, member) for name, member in holder.members(kind))
    elif isinstance(holder, Int4ExpertRun):
        experts = owner.partition(".runs.")[0]
        for name, member in holder.members(kind):
            yield f"{experts}.{name}", I32.stored if kind == GROUPS else stored, member
            if kind == GROUPS:
                yield f"{experts}.{name.removesuffix(PACKED)}{PACKED_SHAPE}", I64.stored, (2,)
    elif isinstance(holder, Int4GroupLinear) and kind == GROUPS:
        width, rows, _ = holder.sizes
        yield f"{owner}.{PACKED}", I32.stored, (rows, width // 8)
        yield f"{owner}.{PACKED_SHAPE}", I64.stored, (2,)
    else:
        yield parameter, stored, shape


def _quantization_config(config: Config, output: Path, int4_group: int | None) -> dict[str, Any]:
    """The format's block, with every module that stays in BF16 in its list of those."""
    (output / "config.json").write_text(json.dumps(config))
    names = {plan.name.removesuffix(".weight").removesuffix(".bias") for plan in tensor_plans(read_spec(output))}
    if int4_group is None:
        return quantization_config(name for name in names if not is_quantized(name))
    packed = {name for name in names if is_quantized(name) or name == HEAD}
    return group_config(int4_group, tuple((names | {HEAD}) - packed))  # a tied head is the embedding, in BF16


def _by_layer(plans: Iterable[TensorInfo]) -> dict[str, list[TensorInfo]]:
    files: dict[str, list[TensorInfo]] = {}
    for plan in plans:
        found = LAYER.match(plan.name)
        name = f"layers-{found[1]}" if found else "mtp" if plan.name.startswith("mtp.") else "outside"
        files.setdefault(f"{name}.safetensors", []).append(plan)
    return files


def _shards(plans: Iterable[TensorInfo]) -> dict[str, list[TensorInfo]]:
    """Files of at most SHARD_BYTES; scales and shapes stay with their weight, which comes before them."""
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for plan in plans:
        if shards[-1] and size + plan.nbytes > SHARD_BYTES and not plan.name.endswith((*SCALES, PACKED_SHAPE)):
            shards.append([])
            size = 0
        shards[-1].append(plan)
        size += plan.nbytes
    return {shard_name(number, len(shards)): shard for number, shard in enumerate(shards, 1)}


def _write_shard(output: Path, plan: FilePlan, seed: int, sparse: bool) -> None:
    with (output / plan.name).open("wb") as file:
        file.write(plan.header)
        os.truncate(file.fileno(), plan.size)
        for info in plan.tensors.values():
            if info.name.endswith((*SCALES, PACKED_SHAPE)):
                continue  # comes with its weight
            values = {} if sparse else _random(info, plan, seed)
            if sparse and info.name.endswith(PACKED):
                values = {info.name.removesuffix(PACKED) + PACKED_SHAPE: np.array([info.shape[0], info.shape[1] * 8])}
            for name, array in values.items():
                target = plan.tensors[name]
                file.seek(target.offset)
                file.write(array.astype(BY_STORED[target.dtype].numpy, copy=False).tobytes())


def _random(plan: TensorInfo, file: FilePlan, seed: int) -> dict[str, np.ndarray]:
    """Values a freshly initialised model might have; those of a quantized weight with its scale."""
    rng = np.random.default_rng([seed, zlib.crc32(plan.name.encode())])
    leaf = plan.name.rpartition(".")[2]
    if leaf == PACKED:
        return random_packed(plan, file.tensors[plan.name.removesuffix(PACKED) + PACKED_SCALE], rng)
    if leaf == "A_log":
        values = np.log(rng.uniform(0.05, 8.0, plan.shape))
    elif leaf == "dt_bias":
        values = rng.uniform(-3.0, 1.0, plan.shape)
    elif len(plan.shape) == 1:
        values = rng.normal(0.0, 0.1, plan.shape) + (1.0 if plan.name.endswith("linear_attn.norm.weight") else 0.0)
    else:
        vocabulary = plan.name.endswith(("embed_tokens.weight", "lm_head.weight"))
        spread = INITIALIZER_RANGE if vocabulary else plan.shape[-1] ** -0.5
        values = rng.standard_normal(plan.shape, np.float32) * spread
    if plan.dtype != E4M3.stored:
        return {plan.name: values}
    quantized, scale = quantize_blocks(values)
    return {plan.name: quantized, f"{plan.name}{SCALE}": scale}


def quantize_blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absmax block-128 quantization: E4M3 values [N, K] and scales f32 [ceil(N/128), ceil(K/128)]."""
    rows, columns = (np.arange(size) // BLOCK for size in values.shape)
    scale = np.zeros((rows[-1] + 1, columns[-1] + 1), np.float32)
    np.maximum.at(scale, (rows[:, None], columns[None, :]), np.abs(values))
    scale = (np.maximum(scale, 1e-12) / E4M3_MAX).astype(BF16.numpy).astype(np.float32)
    scaled = values / scale[rows][:, columns]
    return np.clip(scaled, -E4M3_MAX, E4M3_MAX).astype(E4M3.numpy), scale
