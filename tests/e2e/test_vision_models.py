"""Random models that see, of several shapes and formats, against transformers: the tower's rows and the logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import Experts, conditional_generation, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.manifest import VisionEntry
from deltart.runtime.backends.inputs import media_inputs, text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.positions import positions
from deltart.runtime.vision.tower import grid_inputs
from support.cases import stored_weights

VOCAB, PATCH = 320, 4
TOKENS = {"image_token_id": 316, "video_token_id": 317, "vision_start_token_id": 318, "vision_end_token_id": 319}
SMALL = dict(hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, k_heads=1, v_heads=3, head_dim=64)
FP8 = {"quantized": True, "dtype": "BF16"}
# (text config, vision config, checkpoint format)
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "f32": (SMALL, {}, {}),
    "bf16, one block": (SMALL | {"kv_heads": 1}, {"depth": 1, "num_heads": 1}, {"dtype": "BF16"}),
    "odd depth, eight heads": (SMALL | {"v_heads": 2}, {"depth": 5, "num_heads": 8}, {}),
    "fp8 text": (SMALL | {"hidden": 256, "ffn": 384}, {"hidden_size": 48, "num_heads": 3}, FP8),
    "large table, wide patches": (SMALL, {"num_position_embeddings": 2304, "intermediate_size": 100}, {}),
    "heads of 72": (SMALL | {"heads": 2, "kv_heads": 2}, {"hidden_size": 144, "num_heads": 2}, {"dtype": "BF16"}),
    "moe": (SMALL | {"ffn": 96, "experts": Experts(7, 3, 80)}, {}, {"dtype": "BF16"}),
}
FAST = ("f32", "fp8 text", "moe")
CASES = [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in MODELS]
GRIDS = ((1, 4, 6), (1, 2, 2), (3, 8, 4), (2, 2, 10), (1, 12, 2), (5, 6, 6))


class Made:
    """A model that sees: its artifact's backend, and transformers' model with the same weights."""

    def __init__(self, case: str, folder: Path) -> None:
        sizes, tower, storage = MODELS[case]
        text = text_config(**sizes, vocab=VOCAB, max_position=2048)
        vision = {
            "model_type": text["model_type"].removesuffix("_text"), "depth": 2, "hidden_size": 64,
            "intermediate_size": 96, "num_heads": 2, "in_channels": 3, "patch_size": PATCH, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 16, "out_hidden_size": text["hidden_size"],
            "hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": [],
        } | tower  # fmt: skip
        self.config = conditional_generation(text, vision) | TOKENS
        write_checkpoint(self.config, folder / "checkpoint", **{"dtype": "F32", **storage})
        export_checkpoint(folder / "checkpoint", folder / "artifact")
        self.folder = folder
        self.backend = OrtBackend(folder / "artifact")
        entry = self.backend.manifest.vision
        assert entry is not None
        self.entry: VisionEntry = entry

    def transformers(self) -> PreTrainedModel:
        fields = {name: value for name, value in self.config.items() if name != "architectures"}
        sparse = "num_experts" in self.config["text_config"]
        config = (Qwen3_5MoeConfig if sparse else Qwen3_5Config)(**fields)
        config._attn_implementation = "eager"
        for part in (config.text_config, config.vision_config):
            part._attn_implementation = "eager"
        kind = Qwen3_5MoeForConditionalGeneration if sparse else Qwen3_5ForConditionalGeneration
        model = kind(config).float().eval()
        weights = {n: w for n, w in stored_weights(self.folder / "checkpoint").items() if not n.startswith("mtp.")}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not missing and not unexpected
        return model

    def medium(self, grid: tuple[int, int, int], kind: Any = "image", seed: int = 0) -> Medium:
        count = 1 if kind == "image" else 2 * grid[0]
        shape = (count, grid[1] * PATCH, grid[2] * PATCH, 3)
        return Medium(kind, np.random.default_rng(seed).integers(0, 256, shape, np.uint8), grid, 2)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def model(made: Made) -> PreTrainedModel:
    return made.transformers()


@pytest.mark.parametrize("target", ["portable", "ort"])
def test_the_tower_equals_transformers(target: str, made: Made, model: PreTrainedModel) -> None:
    backend = made.backend if target == "ort" else OrtBackend(made.folder / "artifact", target)
    for grid in GRIDS:
        frames, rows, columns = grid
        given = np.random.default_rng(rows).standard_normal((frames, rows * columns, 96)).astype(np.float32)
        found = backend.see({"patches": given, **grid_inputs(rows, columns, made.entry)})
        with torch.no_grad():
            answer = model.model.visual(torch.from_numpy(given.reshape(-1, 96)), grid_thw=torch.tensor([grid]))
        expected = answer.pooler_output.numpy().reshape(found.shape)
        assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) <= 1e-5


PROMPTS: dict[str, list[int | tuple[str, tuple[int, int, int]]]] = {  # numbers of words, or media
    "text": [19],
    "an image": [3, ("image", (1, 4, 6)), 5],
    "two odd images": [1, ("image", (1, 2, 14)), 2, ("image", (1, 10, 6)), 4],
    "a video": [2, ("video", (3, 4, 4)), 3],
    "a mix": [("image", (1, 2, 2)), 1, ("video", (2, 6, 2)), 2, ("image", (1, 4, 8)), 3],
}


def prompt_of(made: Made, parts: Sequence[Any]) -> tuple[np.ndarray, list[Span]]:
    """Ids [L] and where media lie; frames of a video apart, as the template sets them."""
    ids: list[int] = []
    spans = []
    for number, part in enumerate(parts):
        if isinstance(part, int):
            ids += np.random.default_rng(number).integers(0, 300, part).tolist()
            continue
        kind, grid = part
        medium = made.medium(grid, kind, number)
        for frame in range(grid[0]):
            ids.append(TOKENS["vision_start_token_id"])
            spans.append(Span(len(ids), medium, frame))
            ids += [TOKENS[f"{kind}_token_id"]] * medium.frame_tokens
            ids.append(TOKENS["vision_end_token_id"])
    return np.array(ids, np.int64), spans


def expected_logits(made: Made, model: PreTrainedModel, ids: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    kinds = np.zeros(len(ids), np.int64)
    inputs: dict[str, Any] = {}
    for kind, number, pixels, grids in (
        ("image", 1, "pixel_values", "image_grid_thw"), ("video", 2, "pixel_values_videos", "video_grid_thw"),
    ):  # fmt: skip
        media = list(dict.fromkeys(span.medium for span in spans if span.medium.kind == kind))
        for span in (span for span in spans if span.medium.kind == kind):
            kinds[span.start : span.end] = number
        if media:
            rows = [patches(medium.frames, made.entry).reshape(-1, 96) for medium in media]
            inputs |= {pixels: torch.from_numpy(np.concatenate(rows)), grids: torch.tensor([m.grid for m in media])}
    with torch.no_grad():
        answer = model(input_ids=torch.from_numpy(ids)[None], mm_token_type_ids=torch.from_numpy(kinds)[None], **inputs)
    return answer.logits[0].numpy()


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_transformers(name: str, made: Made, model: PreTrainedModel) -> None:
    """In one call and in three, also cut inside a picture."""
    ids, spans = prompt_of(made, PROMPTS[name])
    expected = expected_logits(made, model, ids, spans)
    index, embeds = np.full(len(ids), -1, np.int32), [np.zeros((1, made.entry.out), np.float32)]
    for span in spans:
        rows, columns = span.medium.grid[1:]
        given = patches(span.medium.frames, made.entry)[span.frame : span.frame + 1]
        index[span.start : span.end] = sum(map(len, embeds)) + np.arange(span.medium.frame_tokens)
        embeds.append(made.backend.see({"patches": given, **grid_inputs(rows, columns, made.entry)})[0])
    seen, place = np.concatenate(embeds), positions(len(ids), spans)
    for cuts in ((), (len(ids) // 3, 2 * len(ids) // 3), (5, 6)):
        state, found = made.backend.new_state("model", 1, 128), []
        for begin, end in zip((0, *cuts), (*cuts, len(ids)), strict=True):
            inputs = text_inputs(
                ids[None, begin:end], np.array([begin], np.int32), logit_index=np.arange(end - begin)[None],
                positions=place[:, None, begin:end],
            )  # fmt: skip
            given = inputs | media_inputs(seen, index[begin:end])
            found.append(made.backend.run("model", state, given, ["logits"])[0][0])
        assert np.abs(np.concatenate(found) - expected).max() <= 1e-4
