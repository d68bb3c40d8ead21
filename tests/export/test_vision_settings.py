"""How a checkpoint says that its pictures and videos are read, and towers that no graph here is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from deltart.artifact import load_manifest
from deltart.errors import ConfigError, DeltaRTError
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import VisionSpec, read_spec
from deltart.export.synthetic.presets import PRESETS
from deltart.export.vision_settings import read_settings
from support.seeing import Seeing

Change = Callable[[dict[str, Any]], object]


def vision_of(folder: Path) -> VisionSpec:
    (folder / "config.json").write_text(json.dumps(PRESETS["qwen3.6-27b"]()))
    vision = read_spec(folder).vision
    assert vision is not None
    return vision


def test_without_files_the_settings_are_the_vendors(tmp_path: Path, real_files: Path) -> None:
    vision = vision_of(tmp_path)
    assumed = read_settings(tmp_path, vision)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        shutil.copy(real_files / name, tmp_path)
    assert read_settings(tmp_path, vision) == assumed
    assert (assumed.patch, assumed.image_pixels, assumed.video_pixels) == (16, (65536, 16777216), (4096, 25165824))
    assert (assumed.grid_side, assumed.head_dim, assumed.out) == (48, 72, 5120)


IMAGE, VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "another processor": (IMAGE, {"image_processor_type": "SiglipImageProcessor"}, "image_processor_type"),
    "another processor of videos": (VIDEO, {"video_processor_type": "LlavaVideoProcessor"}, "video_processor_type"),
    "other patches": (IMAGE, {"patch_size": 14}, "patch_size"),
    "another merge": (VIDEO, {"merge_size": 4}, "merge_size"),
    "another filter": (IMAGE, {"resample": 2}, "resample"),
    "no resize": (IMAGE, {"do_resize": False}, "do_resize"),
    "another scale": (IMAGE, {"rescale_factor": 1.0}, "rescale_factor"),
    "two channels": (IMAGE, {"image_mean": [0.5, 0.5]}, "image_mean"),
    "no deviation": (IMAGE, {"image_std": [0.5, 0, 0.5]}, "image_std"),
    "other colours in videos": (VIDEO, {"image_mean": [0.4, 0.5, 0.5]}, "image_mean"),
    "sizes in sides": (IMAGE, {"size": {"height": 448, "width": 448}}, "shortest_edge"),
    "smallest above largest": (IMAGE, {"size": {"shortest_edge": 9, "longest_edge": 8}}, "shortest_edge"),
    "no time": (VIDEO, {"fps": 0}, "fps"),
    "no frames": (VIDEO, {"max_frames": 0}, "max_frames"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_way_of_reading_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, content, field = WRONG[name]
    vision = vision_of(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=field) as caught:
        read_settings(tmp_path, vision)
    assert file in str(caught.value) and caught.value.expected


TOWERS: dict[str, tuple[Change, str]] = {
    "deepstack": (lambda c: c["vision_config"].update(deepstack_visual_indexes=[8, 16]), "deepstack_visual_indexes"),
    "no square": (lambda c: c["vision_config"].update(num_position_embeddings=2305), "num_position_embeddings"),
    "another width": (lambda c: c["vision_config"].update(out_hidden_size=4096), "out_hidden_size"),
    "heads that don't divide": (lambda c: c["vision_config"].update(num_heads=7), "num_heads"),
    "another activation": (lambda c: c["vision_config"].update(hidden_act="silu"), "hidden_act"),
    "no patches": (lambda c: c["vision_config"].update(patch_size=0), "patch_size"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_another_tower_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, field = TOWERS[name]
    config = PRESETS["qwen3.6-27b"]()
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=field):
        read_spec(tmp_path)


def test_one_token_for_two_things_is_refused(seeing: Seeing, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seeing.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"video_token_id": config["image_token_id"]}))
    with pytest.raises(ConfigError, match="video_token_id"):
        export_checkpoint(folder, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_text_only_leaves_the_tower_out(seeing: Seeing, tmp_path: Path) -> None:
    whole = load_manifest(seeing.artifact)
    assert not any(tensor.fate == "deferred" for tensor in whole.tensors.values())
    text = export_checkpoint(seeing.checkpoint, tmp_path / "artifact", vision=False)
    assert text.vision is None and "vision" not in text.graphs
    assert not any(tensor.name.startswith("vision_") for tensor in text.graphs["model"].inputs)
    deferred = {name: tensor.reason for name, tensor in text.tensors.items() if tensor.fate == "deferred"}
    assert {*deferred.values()} == {"vision: left out, text only"}
    assert deferred.keys() == {*whole.graphs["vision"].weights}


def test_a_tower_that_is_not_there_is_said(seeing: Seeing, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seeing.checkpoint, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("model.visual.")}
    save_file(kept, folder / "model.safetensors")
    said = list[str]()
    manifest = export_checkpoint(folder, tmp_path / "artifact", log=said.append)
    assert manifest.vision is None and any("no tensor of one is there" in line for line in said)
    bias = "model.visual.merger.norm.bias"
    save_file(kept | {bias: tensors[bias]}, folder / "model.safetensors")
    with pytest.raises(DeltaRTError, match=r"model\.visual\..* is missing"):
        export_checkpoint(folder, tmp_path / "partial")
