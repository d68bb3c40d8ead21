"""The output's layout against the vendor's own FP8 release, and the skip list against every consumer's rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.quantizers.quantizers_utils import should_convert_module

from deltart.calib import layout
from deltart.calib.pipeline import calibrate
from deltart.calib.selection import candidates, select
from deltart.export.checkpoint import Checkpoint
from deltart.export.formats import is_skipped
from deltart.export.formats.fp8_block import GROUPS
from deltart.export.spec import read_spec
from deltart.export.synthetic.write import synthesize

LINEARS = {leaf for group in GROUPS for leaf in group}
LINEARS |= {"in_proj_a", "in_proj_b", "fc", "lm_head", "qkv", "proj"}


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory, real_files: Path) -> Checkpoint:
    """The 27B's names, dtypes and shapes, without data."""
    folder = tmp_path_factory.mktemp("27b") / "checkpoint"
    synthesize("qwen3.6-27b", folder, sparse=True)
    return Checkpoint(folder)


def test_27b_equals_the_vendors_fp8_release(vendor: Checkpoint, real_files: Path) -> None:
    spec = read_spec(vendor.folder)
    selection = select(candidates(spec, vendor), vendor, None)
    assert len(selection.modules) == 407 and not selection.kept
    planned = {}
    for file in layout.plan_files(vendor, selection, "BF16"):
        infos = file.tensors.values() if not file.linked else (i for i in vendor.values() if i.file == file.name)
        planned.update({info.name: (info.dtype, list(info.shape)) for info in infos})
    published = json.loads((real_files / "Qwen3.6-27B-FP8.weights.derived.json").read_text())
    assert planned == {name: (dtype, shape) for name, (dtype, shape) in published.items()}
    theirs = json.loads((real_files / "Qwen3.6-27B-FP8.config.json").read_text())["quantization_config"]
    ours = layout.output_config(vendor, selection)["quantization_config"]
    own, vendors = (tuple(q.pop("modules_to_not_convert")) for q in (ours, theirs))
    assert ours == theirs
    modules = {name.removesuffix(".weight").removesuffix(".bias") for name in vendor}
    for module in modules:
        assert is_skipped(module, own) == (module not in selection.modules)
        if module.rpartition(".")[2] in LINEARS:
            assert is_skipped(module, vendors) == is_skipped(module, own)


def test_transformers_rule_skips_what_stays(tiny: Path) -> None:
    tensors = Checkpoint(tiny)
    selection = select(candidates(read_spec(tiny), tensors), tensors, ["layers.1.mlp", "self_attn"])
    skipped = layout.output_config(tensors, selection)["quantization_config"]["modules_to_not_convert"]
    for name in tensors:
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            assert should_convert_module(module, skipped) == (module in selection.modules), module


def test_shards_keep_their_names_and_whole_ones_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltart.export.synthetic import write as synthetic
    from support.calibration import write_tiny

    monkeypatch.setattr(synthetic, "SHARD_BYTES", 150_000)
    checkpoint = write_tiny(tmp_path / "checkpoint")
    calibrate(checkpoint, tmp_path / "out", method="absmax")
    before, after = Checkpoint(checkpoint), Checkpoint(tmp_path / "out")
    assert len(before.files) > 5 and [f.name for f in before.files] == [f.name for f in after.files]
    for name in before:
        assert after[name].file == before[name].file
        if after[name].dtype == "F8_E4M3":
            assert after[f"{name}_scale_inv"].file == before[name].file
    same = [f.name for f in after.files if (checkpoint / f.name).samefile(tmp_path / "out" / f.name)]
    quantized = {info.file for info in after.values() if info.dtype == "F8_E4M3"}
    assert same and not quantized & set(same)


def test_every_tensor_is_aligned(tiny: Path) -> None:
    tensors = Checkpoint(tiny)
    selection = select(candidates(read_spec(tiny), tensors), tensors, None)
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    for file in layout.plan_files(tensors, selection, "F32"):
        assert all(info.offset % sizes[info.dtype] == 0 for info in file.tensors.values())
