"""Resized pixels against torch's kernel, patches against transformers' processor, and the tower's other inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionRotaryEmbedding
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from deltart.runtime.vision.load import load_image
from deltart.runtime.vision.patches import patches, resized
from deltart.runtime.vision.sizes import image_size
from deltart.runtime.vision.tower import grid_inputs
from support.vision import ENTRY, exact_resize, photograph

SIZES = [(300, 200, 320, 224), (37, 411, 96, 736), (500, 90, 352, 192), (640, 480, 256, 192), (64, 64, 256, 256)]


def torch_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """What transformers' default backend calls for pictures in memory."""
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    resized = F.interpolate(image, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].numpy().transpose(1, 2, 0)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("picture", [noise, photograph])
@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
def test_resize_is_within_two_levels(h: int, w: int, height: int, width: int, picture: object) -> None:
    pixels = picture(h, w)  # type: ignore[operator]
    exact = exact_resize(pixels, height, width)
    assert np.array_equal(exact, torch_resize(pixels, height, width))
    apart = np.abs(resized(Image.fromarray(pixels), height, width).astype(int) - exact)
    assert apart.max() <= 2
    assert (apart > 0).mean() < 0.01


def test_one_call_of_pillow_would_not_be() -> None:
    """Which says that the comparison above sees the difference."""
    pixels = noise(500, 90)
    once = np.array(Image.fromarray(pixels).resize((192, 352), Image.Resampling.BICUBIC)).astype(int)
    twice = resized(Image.fromarray(pixels), 352, 192).astype(int)
    exact = exact_resize(pixels, 352, 192)
    version = int(Image.__version__.split(".")[0])
    assert (np.abs(once - exact).max() > 2) == (version >= 13)
    assert np.abs(twice - exact).max() <= 2


@pytest.mark.parametrize(("h", "w"), [(256, 320), (512, 256), (288, 352)])
def test_patches_of_a_picture_equal_transformers(h: int, w: int) -> None:
    pixels = photograph(h, w)
    assert image_size(h, w, ENTRY) == (h, w)  # not resized, so that only the order and the scale are compared
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
    )  # fmt: skip
    expected = processor(images=[Image.fromarray(pixels)], return_tensors="np")
    medium = load_image(pixels, ENTRY)
    found = patches(medium.frames, ENTRY)
    assert [list(medium.grid)] == expected["image_grid_thw"].tolist()
    assert found.shape == (1, *expected["pixel_values"].shape)
    assert np.abs(found[0] - expected["pixel_values"]).max() <= 1e-6
    assert found.dtype == np.float32
    assert np.array_equal(np.unique(found), (np.unique(pixels).astype(np.float32) - 127.5) / np.float32(127.5))


def test_patches_of_a_video_are_those_of_its_pairs_of_frames() -> None:
    frames = np.stack([photograph(64, 96, seed) for seed in range(3)])
    found = patches(frames, ENTRY)
    assert found.shape == (2, 24, 1536)
    for t, (first, second) in enumerate([(0, 1), (2, 2)]):  # an odd last frame stands twice
        pair = found[t].reshape(24, 3, 2, 256)
        for place, frame in ((0, first), (1, second)):
            alone = patches(frames[frame : frame + 1], ENTRY)[0].reshape(24, 3, 2, 256)
            assert np.array_equal(pair[:, :, place], alone[:, :, place])


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (16, 16), (2, 228), (48, 46), (130, 22)])
def test_places_of_patches_equal_transformers(rows: int, columns: int) -> None:
    grid = torch.tensor([[1, rows, columns]])
    index, weight = get_vision_interpolation_indices_and_weights(grid, 48, "bilinear", True, 2)
    found = grid_inputs(rows, columns, ENTRY)
    assert np.array_equal(found["pos_index"], index.numpy())
    assert np.abs(found["pos_weight"] - weight.numpy()).max() <= 1e-6
    config = Qwen3_5VisionConfig(hidden_size=1152, num_heads=16)
    cos, sin = Qwen3_5VisionRotaryEmbedding(config)(torch.zeros(1), get_vision_position_ids(grid, 2))
    for name, expected in (("cos", cos), ("sin", sin)):
        assert np.abs(found[name] - expected.numpy().reshape(rows * columns, -1)[:, :36]).max() <= 2e-5
    assert {name: array.dtype.name for name, array in found.items()} == {
        "pos_index": "int64", "pos_weight": "float32", "cos": "float32", "sin": "float32",
    }  # fmt: skip
