"""Scales that no weight carries: of an FP8 KV cache and of static activation quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.calib.observe import BlockStatistics
from deltart.calib.scales import MIN_SCALE
from deltart.calib.selection import cache_scale_names
from deltart.dtypes import E4M3_MAX

KV_FILE, ACTIVATION_FILE = "kv_cache_scales.json", "activation_scales.json"
Notes = Mapping[str, Any]  # of each layer by its name, see `note`


def note(found: BlockStatistics) -> dict[str, Any]:
    """What of a layer's statistics the scales follow from, for JSON."""
    kv = vars(found.kv) if found.kv else None
    inputs = {name: {"amax": own.amax, "rms": own.rms} for name, own in found.inputs.items()}
    return {"kv": kv, "inputs": inputs}


def kv_scales(notes: Notes) -> dict[str, Any]:
    """Dequantization scales of an E4M3 KV cache by attention module, k after norm and RoPE.

    {"model.layers.3.self_attn": {"k": {"layer": s, "heads": [s, ...]}, "v": {...}}}: the largest |k| or |v| on the
    calibration text over 448, per KV head, and per layer as the largest of them. A value is stored as value / s.
    """
    scales = {}
    for key, own in notes.items():
        if own["kv"]:
            heads = {kind: [max(peak / E4M3_MAX, MIN_SCALE) for peak in peaks] for kind, peaks in own["kv"].items()}
            scales[f"{key}.self_attn"] = {kind: {"layer": max(per), "heads": per} for kind, per in heads.items()}
    return scales


def cache_tensors(notes: Notes) -> dict[str, float]:
    """The scales per layer by the names of the checkpoint's tensors."""
    return {
        name: own[kind]["layer"]
        for module, own in kv_scales(notes).items()
        for name, kind in zip(cache_scale_names(module), "kv", strict=True)
    }


def activation_scales(notes: Notes) -> dict[str, float]:
    """Static per-tensor scales (largest |x| on the calibration text / 448) by the module that reads the input.

    Prefer dynamic scales, which config.json asks for: one static scale must leave room for the few tokens and
    channels that are hundreds of times larger than the rest, it saturates on inputs beyond the calibration text,
    and it saves nothing where activations stay in BF16 (decode) or their amax rides along with the previous
    kernel (prefill). Static scales are for hardware that has no per-token path.
    """
    return {name: own["amax"] / E4M3_MAX for layer in notes.values() for name, own in layer["inputs"].items()}


def input_peaks(notes: Notes) -> dict[str, float]:
    """Largest |x| over the RMS of x, by the module that reads the input."""
    inputs = {name: own for layer in notes.values() for name, own in layer["inputs"].items()}
    return {name: own["amax"] / own["rms"] if own["rms"] else 0.0 for name, own in inputs.items()}
