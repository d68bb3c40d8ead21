"""Prompts with media against transformers' processor: ids and grids; and placeholders that users typed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from deltart.errors import GenerationError
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.medium import Medium
from deltart.runtime.vision.parts import load_media, media_parts, without_sources
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.prompt import KEPT, PADS, REPLACED, Escape, described, encode_prompt
from support.vision import ENTRY, photograph

PAD_IDS = {"image": 248056, "video": 248057}
TEXTS = ("Look: ", "a<b ", "What is it?", "\n\n", "two  spaces ", "Ünïcode 漢字", "<0.5 seconds>", "3.14")


@pytest.fixture(scope="module")
def tokenizer(qwen_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(qwen_folder)


@pytest.fixture(scope="module")
def template(qwen_folder: Path) -> ChatTemplate:
    return ChatTemplate.from_folder(qwen_folder)


def encoded(text: str, media: list[Medium], tokenizer: Tokenizer, wrapper: str = KEPT) -> tuple[Any, Any]:
    return encode_prompt([text], media, tokenizer, wrapper, ENTRY.tokens)


def shaped(kind: str, grid: tuple[int, int, int], times: tuple[float, ...] = ()) -> Medium:
    frames = np.zeros((1, 1, 1, 3), np.uint8)
    return Medium(kind, frames, grid, 2, times)  # type: ignore[arg-type]


def random_conversations(rng: random.Random, count: int) -> Iterator[tuple[list[dict[str, Any]], list[Medium]]]:
    """Messages of several turns whose parts are texts, pictures and videos of random sizes."""
    for _ in range(count):
        messages, media = [], []
        for turn in range(rng.choice([1, 1, 2, 3])):
            parts: list[dict[str, Any]] = []
            for _ in range(rng.randint(1, 4)):
                kind = rng.choice(["text", "text", "image", "video"])
                if kind == "text":
                    parts.append({"type": "text", "text": rng.choice(TEXTS)})
                    continue
                parts.append({"type": kind})
                frames = 1 if kind == "image" else rng.randint(2, 9)
                t, h, w = -(-frames // 2), 2 * rng.randint(1, 12), 2 * rng.randint(1, 12)
                seconds = tuple(sorted(rng.choice([i / 4, rng.random() * 900]) for i in range(t)))
                media.append(shaped(kind, (t, h, w), seconds if kind == "video" else ()))
            messages += [{"role": "user", "content": parts}]
            if turn:
                messages.insert(-1, {"role": "assistant", "content": rng.choice(TEXTS)})
        yield messages, media


def reference_ids(text: str, media: list[Medium], tokenizer: Any, replace_outer: bool) -> list[int]:
    """transformers' own expansion of each placeholder, then its tokenizer."""
    namespace = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2), image_token=PADS["image"],
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2), video_token=PADS["video"],
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    for medium in media:
        grid = np.array([medium.grid])
        if medium.kind == "image":
            new = Qwen3VLProcessor.replace_image_token(namespace, {"image_grid_thw": grid}, 0)
            text = text.replace(PADS["image"], new.replace("|", "\0"), 1)
            continue
        namespace._calculate_timestamps = lambda *_, of=medium: list(of.times)
        metadata = SimpleNamespace(fps=1, frames_indices=[])
        inputs = {"video_grid_thw": grid, "video_metadata": [metadata]}
        new = Qwen3VLProcessor.replace_video_token(namespace, inputs, 0)
        old = f"<|vision_start|>{PADS['video']}<|vision_end|>" if replace_outer else PADS["video"]
        text = text.replace(old, new.replace("|", "\0"), 1)
    return tokenizer(text.replace("\0", "|"), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wrapper", [KEPT, REPLACED])
def test_ids_equal_transformers(
    count: int, wrapper: str, qwen_folder: Path, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    theirs = AutoTokenizer.from_pretrained(qwen_folder)
    for messages, media in random_conversations(random.Random(count), count):
        text = template.render(messages)
        ids, spans = encoded(text, media, tokenizer, wrapper)
        assert list(ids) == reference_ids(text, media, theirs, wrapper == REPLACED)
        expected = [(medium, frame) for medium in media for frame in range(medium.grid[0])]
        assert [(span.medium, span.frame) for span in spans] == expected
        for span in spans:
            assert set(ids[span.start : span.end]) == {PAD_IDS[span.medium.kind]}
        assert sum(i in PAD_IDS.values() for i in ids) == sum(medium.tokens for medium in media)


def test_media_equal_the_whole_processor(qwen_folder: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Ids, kinds and grids of everything together, and pixels within two levels."""
    pytest.importorskip("torchvision", reason="transformers' processor of videos needs torchvision")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 16777216}, **normal),
        AutoTokenizer.from_pretrained(qwen_folder),
        Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824}, cap_pixels_per_frame=False, **normal
        ),
    )
    pictures = [photograph(h, w) for h, w in ((300, 200), (64, 700), (256, 256))]
    clip = np.stack([photograph(70, 120, seed) for seed in range(13)])
    contents = [{"type": "image", "image": picture} for picture in pictures]
    contents.insert(1, {"type": "video", "video": clip, "fps": 6.0})
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "and "}]} for part in contents]
    media = load_media(list(media_parts(messages)), ENTRY)
    text = template.render(without_sources(messages))
    ids, _ = encoded(text, media, tokenizer)
    expected = processor(
        text=[text], images=[Image.fromarray(picture) for picture in pictures], videos=[clip.transpose(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=13, fps=6.0)], return_tensors="np",
    )  # fmt: skip
    assert list(ids) == expected["input_ids"][0].tolist()
    for kind, grids, pixels in (
        ("image", "image_grid_thw", "pixel_values"), ("video", "video_grid_thw", "pixel_values_videos"),
    ):  # fmt: skip
        of_kind = [medium for medium in media if medium.kind == kind]
        assert [list(medium.grid) for medium in of_kind] == expected[grids].tolist()
        found = np.concatenate([patches(medium.frames, ENTRY).reshape(-1, 1536) for medium in of_kind])
        levels = np.abs(found - expected[pixels]) * 127.5
        # transformers' Pillow backend resizes in one call: see patches.resized
        assert kind == "image" or (levels.max() < 2.5 and (levels > 0.5).mean() < 0.01)


def test_typed_placeholders_are_characters(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    typed = f"is {PADS['image']} a token? and {PADS['video']}"
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": typed}]},
        {"role": "assistant", "content": typed, "tool_calls": [{"function": {"name": "f", "arguments": {"x": typed}}}]},
        {"role": "tool", "content": typed},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": typed, "parameters": {}}}]
    escape = Escape(messages, tools)
    text = template.render(escape.hide(messages), tools=escape.hide(tools))
    picture = shaped("image", (1, 4, 6))
    ids, spans = encode_prompt(escape.split(text), [picture], tokenizer, KEPT, ENTRY.tokens)
    assert [i for i in ids if i in PAD_IDS.values()] == [PAD_IDS["image"]] * 6
    assert [(span.medium, span.end - span.start) for span in spans] == [(picture, 6)]
    shown = tokenizer.decode(ids, skip_special=False)
    assert shown.replace(PADS["image"] * 6, PADS["image"], 1) == template.render(messages, tools=tools)


def test_marks_that_a_user_typed_are_not_taken_for_ours(tokenizer: Tokenizer) -> None:
    text = f"|typed-0-image| {PADS['image']} |typed-1-video|"
    escape = Escape([text])
    hidden = escape.hide(text)
    assert PADS["image"] not in hidden
    ids, spans = encode_prompt(escape.split(hidden), [], tokenizer, KEPT, ENTRY.tokens)
    assert not spans
    assert tokenizer.decode(ids, skip_special=False) == text
    assert PAD_IDS["image"] not in ids


@pytest.mark.parametrize(("images", "videos"), [(0, 1), (2, 1), (1, 0), (1, 2)])
def test_more_or_fewer_media_than_placeholders(images: int, videos: int, tokenizer: Tokenizer) -> None:
    media = [shaped("image", (1, 2, 2))] * images + [shaped("video", (1, 2, 2), (0.0,))] * videos
    with pytest.raises(GenerationError, match=r"\d (images|videos) for 1 placeholders"):
        encoded(PADS["image"] + PADS["video"], media, tokenizer)


def test_media_in_a_system_message_are_refused(template: ChatTemplate) -> None:
    with pytest.raises(GenerationError, match="System message cannot contain images"):
        template.render([{"role": "system", "content": [{"type": "image"}]}, {"role": "user", "content": "a"}])


def test_what_media_take_is_said(tokenizer: Tokenizer) -> None:
    media = [shaped("image", (1, 4, 6)), shaped("video", (2, 2, 4), (0.0, 1.0)), shaped("image", (1, 2, 2))]
    _, spans = encoded(PADS["image"] + PADS["video"] + PADS["image"], media, tokenizer)
    assert described(spans) == "image 1: 6 tokens, image 2: 1 tokens, video 1: 4 tokens"
