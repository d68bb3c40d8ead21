"""The written checkpoint against the loaders of vLLM and SGLang, which can't be installed here.

The rules below are restated from their public sources as read in November 2026:
vLLM `model_executor/layers/quantization/fp8.py` (Fp8Config.from_config, Fp8LinearMethod.create_weights),
`.../quantization/utils/quant_utils.py` (is_layer_skipped), `model_executor/model_loader/weight_utils.py`
(maybe_remap_kv_scale_name, default_weight_loader), `model_executor/models/qwen3_5.py` (packed modules);
SGLang `srt/layers/quantization/fp8.py` and `.../utils.py` (is_layer_skipped before and after its module boundaries).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltart.calib import layout
from deltart.calib.pipeline import calibrate
from deltart.calib.selection import candidates, select
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.write import synthesize
from support.calibration import write_text, write_tiny

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
SINGLE = ("out_proj", "o_proj", "down_proj", "fc")
Skips = Callable[[str, set[str]], bool]


def exactly(module: str, ignored: set[str]) -> bool:
    """vLLM, and SGLang before it matched on boundaries."""
    return module in ignored


def on_boundaries(module: str, ignored: set[str]) -> bool:
    """SGLang since then."""
    return any(f".{entry}." in f".{module}." for entry in ignored)


@pytest.fixture(scope="module", params=[(), ("layers.1.mlp", "layers.3.self_attn")], ids=["all", "some kept"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    checkpoint, text = write_tiny(folder / "checkpoint"), write_text(folder / "text.jsonl")
    calibrate(checkpoint, folder / "out", method="absmax", data=text, kv_cache=True, keep=request.param)
    return folder / "out"


def runtime_modules(names: set[str]) -> dict[str, tuple[str, ...]]:
    """The linears a runtime builds, fused ones by their fused name, and the checkpoint's linears in each."""
    linears = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    built = {}
    for fused, parts in FUSED.items():
        for stem in {linear.rpartition(".")[0] for linear in linears if linear.rpartition(".")[2] == parts[0]}:
            built[f"{stem}.{fused}"] = tuple(f"{stem}.{part}" for part in parts)
    return built | {linear: (linear,) for linear in linears if linear.rpartition(".")[2] in SINGLE}


def check_skip_list(config: dict[str, object], dtypes: dict[str, str]) -> None:
    """Every linear that a runtime builds is skipped by every rule just if the checkpoint holds it unquantized."""
    ignored = set(config["modules_to_not_convert"])  # type: ignore[call-overload]
    skips: tuple[Skips, ...] = (exactly, on_boundaries)
    for fused, parts in runtime_modules(set(dtypes)).items():
        plain = {dtypes[f"{part}.weight"] != "F8_E4M3" for part in parts}
        assert len(plain) == 1, f"{fused} mixes formats"
        for skip in skips:
            assert {skip(part, ignored) for part in parts} == plain, fused
        if fused.endswith("in_proj_ba"):  # SGLang before it knew the parts of in_proj_ba
            assert exactly(fused, ignored) in plain


def test_configuration_and_skip_list(written: Path) -> None:
    config = json.loads((written / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "fp8" and config["activation_scheme"] == "dynamic"
    assert config["weight_block_size"] == [128, 128] and "ignored_layers" not in config
    check_skip_list(config, {name: info.dtype for name, info in Checkpoint(written).items()})


def test_skip_list_of_the_27b(tmp_path: Path) -> None:
    """With the names that vLLM gives the vision-language class (its weight mapper's renaming)."""
    synthesize("qwen3.6-27b", tmp_path / "27b", sparse=True)
    tensors = Checkpoint(tmp_path / "27b")
    selection = select(candidates(read_spec(tensors.folder), tensors), tensors, None, ["layers.7.mlp"])
    files = layout.plan_files(tensors, selection, "BF16")
    dtypes = {info.name: info.dtype for file in files for info in file.tensors.values()}
    config = layout.output_config(tensors, selection)["quantization_config"]

    def renamed(name: str) -> str:
        for old, new in (("model.visual.", "visual."), ("lm_head.", "language_model.lm_head.")):
            name = name.replace(old, new, 1) if name.startswith(old) else name
        return name.replace("model.language_model.", "language_model.model.", 1)

    check_skip_list(config, dtypes)
    skipped = [renamed(name) for name in config["modules_to_not_convert"]]
    check_skip_list({"modules_to_not_convert": skipped}, {renamed(name): dtype for name, dtype in dtypes.items()})


def test_weights_and_scales(written: Path) -> None:
    tensors = Checkpoint(written)
    quantized = [name for name, info in tensors.items() if info.dtype == "F8_E4M3"]
    assert quantized and all(name.endswith(".weight") for name in quantized)
    for name in quantized:
        rows, columns = tensors[name].shape
        scale = tensors[f"{name}_scale_inv"]  # copied into a float32 parameter of this shape
        assert scale.shape == (-(-rows // 128), -(-columns // 128)) and scale.dtype in ("BF16", "F32")
        assert (np.asarray(tensors.read(f"{name}_scale_inv")).astype(np.float32) > 0).all()
        assert rows % 128 == 0  # or the parts of a fused weight could not be put together
    assert not {n for n in tensors if n.endswith("_scale_inv")} - {f"{name}_scale_inv" for name in quantized}


def test_kv_scales_reach_the_attention_of_vllm(written: Path) -> None:
    tensors = Checkpoint(written)
    found = {name for name in tensors if name.endswith(("k_scale", "v_scale"))}
    assert found == {f"{layer}.self_attn.{k}_scale" for layer in ("model.layers.3", "mtp.layers.0") for k in "kv"}
    for name in found:
        remapped = re.sub(r"\.([qkv])_scale$", r".attn.\1_scale", name)
        assert remapped in {f"{name.rpartition('.')[0]}.attn.{kind}_scale" for kind in "kv"}
        info = tensors[name]
        assert info.dtype == "F32" and info.shape == ()  # one number, as the parameter is
        assert float(tensors.read(name)) > 0  # 0 and less mean that there is none
