"""LoRA adapters in PEFT's file layout, and what they make of a checkpoint, by the papers' formulas in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GDN = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*GDN, *ATTENTION, "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Tensors = dict[str, torch.Tensor]
Base = Callable[[str], Path]  # a base checkpoint by its kind, see tests/export/merge/conftest.py


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, by the safetensors library."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def linears(base: Path, suffixes: Iterable[str] = LINEARS) -> list[str]:
    """Modules of the base, the MTP head's aside, by the last part of their names."""
    wanted = tuple(f".{suffix}.weight" for suffix in suffixes)
    names = (name for name in tensors_of(base) if f".{name}".endswith(wanted) and not name.startswith("mtp."))
    return sorted(name.removesuffix(".weight") for name in names)


def write_adapter(
    folder: Path, base: Path, modules: Iterable[str], *, config: Mapping[str, Any] | None = None,
    ranks: Mapping[str, int] | None = None, dtype: torch.dtype = torch.float32, size: float = 0.1,
    whole: Tensors | None = None, renamed: tuple[str, str] = ("", ""), seed: int = 0,
) -> Path:  # fmt: skip
    """An adapter of `modules` of `base` with random matrices.

    Args:
        config: fields beside PEFT's usual ones.
        ranks: of modules that have another than r.
        size: standard deviation of A and of B, which decide how much a weight changes.
        whole: tensors that replace the base's, by its names.
        renamed: a prefix of the base's names, and the one that the trained model had in its place.
    """
    settings = _settings(config or {})
    base_tensors, generator, tensors = tensors_of(base), torch.Generator().manual_seed(seed), Tensors()

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).to(dtype)

    for module in modules:
        rows, columns = base_tensors[f"{module}.weight"].shape
        rank = (ranks or {}).get(module, settings["r"])
        if module.endswith("embed_tokens"):
            tensors[f"{module}.lora_embedding_A"] = random(rank, rows)
            tensors[f"{module}.lora_embedding_B"] = random(columns, rank)
            continue
        tensors[f"{module}.lora_A.weight"] = random(rank, columns)
        tensors[f"{module}.lora_B.weight"] = random(rows, rank)
        if settings["use_dora"]:
            tensors[f"{module}.lora_magnitude_vector"] = 1 + random(rows).abs()
    tensors |= whole or {}
    folder.mkdir(parents=True)
    old, new = renamed
    save_file({PREFIX + _renamed(name, old, new): value for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    usual = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "family/base", "bias": "none",
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "use_rslora": False, "use_dora": False, "lora_bias": False,
        "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj"], "modules_to_save": None,
        "init_lora_weights": True, "fan_in_fan_out": False, "inference_mode": True, "target_parameters": None,
    }  # fmt: skip
    return usual | dict(config)


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def edit(adapter: Path, tensors: Mapping[str, torch.Tensor | None] | None = None, **config: Any) -> None:
    """Change an adapter's files: tensors by their whole names (None removes one), and fields of its config."""
    stored = load_file(adapter / WEIGHTS)
    for name, value in (tensors or {}).items():
        stored.pop(name, None)
        if value is not None:
            stored[name] = value
    save_file(stored, adapter / WEIGHTS)
    (adapter / CONFIG).write_text(json.dumps(json.loads((adapter / CONFIG).read_text()) | config))


def delta(adapter: Path, module: str, alpha: float = 8, rslora: bool = False) -> np.ndarray:
    """alpha / r (or alpha / sqrt r) B A of a module in float64, [out, in]."""
    tensors = load_file(adapter / WEIGHTS)
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"].double().numpy() for part in "AB")
    return (alpha / (math.sqrt(len(a)) if rslora else len(a))) * (b @ a)


def magnitude(adapter: Path, module: str) -> np.ndarray:
    """DoRA's, in float64, [out]."""
    return load_file(adapter / WEIGHTS)[f"{PREFIX}{module}.lora_magnitude_vector"].double().numpy()


def assert_rounded(found: torch.Tensor, expected: np.ndarray) -> None:
    """`found` holds `expected` (float64) rounded to its type: float32 sums may move a few values to the next one."""
    unit = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    if found.dtype != torch.float32:
        unit *= 2.0 ** (23 - {torch.bfloat16: 7, torch.float16: 10}[found.dtype])
    error = np.abs(found.double().numpy() - expected)
    slack = 1e-6 * np.abs(expected).max()  # of the sums
    assert (error <= 0.5 * unit + slack).all(), (error / unit).max()
