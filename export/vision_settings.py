"""How a checkpoint's pictures and videos are read: its preprocessor files, or the vendor's numbers without them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltart.errors import ConfigError
from deltart.export.config_fields import Fields
from deltart.export.spec import VisionSpec
from deltart.json_files import read_json
from deltart.manifest import VisionEntry

GRAPH = "vision"
ROPE_THETA = 10000.0  # of the tower; no file says
MAX_PATCHES = 16384  # of a call: a picture of 2048 x 2048 pixels; larger ones need an engine of their own
PROCESSORS = {
    "preprocessor_config.json": (
        "image_processor_type",
        ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen3VLImageProcessor", "Qwen3VLImageProcessorFast"),
    ),
    "video_preprocessor_config.json": ("video_processor_type", ("Qwen3VLVideoProcessor", "Qwen2VLVideoProcessor")),
}
IMAGE, VIDEO = PROCESSORS
# What the vendor's files say, and what transformers takes where they say nothing.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    IMAGE: {"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
    VIDEO: {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "fps": 2.0,
        "min_frames": 4,
        "max_frames": 768,
    },
}
TOKENS = {"image_pad": 248056, "video_pad": 248057, "vision_start": 248053, "vision_end": 248054}
CONFIG_NAMES = {"image_pad": "image_token_id", "video_pad": "video_token_id"}
BICUBIC = 3  # as Pillow numbers its filters


def read_settings(checkpoint: Path, vision: VisionSpec) -> VisionEntry:
    """The manifest's account of how media are read.

    Raises:
        ConfigError: a file is malformed, or describes another way of reading them than this runtime's.
    """
    image, video = (_fields(checkpoint, name, vision) for name in (IMAGE, VIDEO))
    mean, std = (_triple(image, name) for name in ("image_mean", "image_std"))
    for name, own in (("image_mean", mean), ("image_std", std)):
        if _triple(video, name) != own:
            raise video.error(name, list(_triple(video, name)), f"{list(own)}, as for pictures")
    fps = video.number("fps", 0, above=True)
    return VisionEntry(
        graph=GRAPH,
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        image_pixels=_pixels(image),
        video_pixels=_pixels(video),
        frame_cap=False,
        mean=mean,
        std=std,
        resample="bicubic",
        fps=fps,
        min_frames=video.positive("min_frames"),
        max_frames=video.positive("max_frames"),
        wrapper="kept",
        tokens=_tokens(checkpoint),
        max_patches=MAX_PATCHES,
        hidden=vision.hidden_size,
        out=vision.out_hidden_size,
        grid_side=vision.grid_side,
        head_dim=vision.hidden_size // vision.num_heads,
        rope_theta=ROPE_THETA,
    )


def _fields(checkpoint: Path, name: str, vision: VisionSpec) -> Fields:
    path = checkpoint / name
    fields = Fields(read_json(path) if path.exists() else {}, str(path), DEFAULTS[name])
    kind, known = PROCESSORS[name]
    fields.only_if_present(kind, known)
    fields.only_if_present("patch_size", [vision.patch_size])
    fields.only_if_present("temporal_patch_size", [vision.temporal_patch_size])
    fields.only_if_present("merge_size", [vision.spatial_merge_size])
    fields.only_if_present("resample", [BICUBIC])
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        fields.only_if_present(step, [True])
    if "rescale_factor" in fields and abs(fields.number("rescale_factor", 0) * 255 - 1) > 1e-6:
        raise fields.error("rescale_factor", fields.values["rescale_factor"], "1 / 255")
    return fields


def _pixels(fields: Fields) -> tuple[int, int]:
    size = fields.section("size")
    lowest, highest = size.positive("shortest_edge"), size.positive("longest_edge")
    if lowest > highest:
        raise size.error("shortest_edge", lowest, f"at most longest_edge = {highest}; both count pixels")
    return lowest, highest


def _triple(fields: Fields, name: str) -> tuple[float, float, float]:
    values = fields.optional(name, list, [0.5, 0.5, 0.5])
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(values) != 3 or len(numbers) != 3 or (name == "image_std" and not all(numbers)):
        raise fields.error(name, values, "a number for each of red, green and blue")
    red, green, blue = map(float, numbers)
    return red, green, blue


def _tokens(checkpoint: Path) -> dict[str, int]:
    config = Fields(read_json(checkpoint / "config.json"), str(checkpoint / "config.json"))
    names = {name: CONFIG_NAMES.get(name, f"{name}_token_id") for name in TOKENS}
    found = {name: config.optional(field, int, TOKENS[name]) for name, field in names.items()}
    if len({*found.values()}) < len(found) or min(found.values()) < 0:
        raise ConfigError(
            f"{checkpoint / 'config.json'}: {', '.join(f'{names[n]} = {i}' for n, i in found.items())}",
            "four different token ids",
            "correct the config",
        )
    return found
