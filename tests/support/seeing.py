"""A small random model that sees, in the vendor's layout, and transformers' answers of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3_5ForConditionalGeneration

from deltart.export.synthetic.presets import conditional_generation, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.manifest import VisionEntry
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.patches import patches

TOKENIZER = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
PLACES = {"image_token_id": 1205, "video_token_id": 1206, "vision_start_token_id": 1202, "vision_end_token_id": 1203}
VOCAB, SPELLED = 1280, 1226  # rows of the embedding, and those of them that stand for text
PATCH = 4
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{%- if message.role == 'system' -%}{{- raise_exception('System message cannot contain images.') -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Seeing:
    """A checkpoint that sees, its artifact, and transformers' model of it."""

    checkpoint: Path
    artifact: Path

    def model(self) -> PreTrainedModel:
        """In float32, attention by its formula."""
        return Qwen3_5ForConditionalGeneration.from_pretrained(
            self.checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def write_seeing_checkpoint(folder: Path, layers: int = 4) -> None:
    """Patches of 4 pixels, so that small pictures have many."""
    text = text_config(
        hidden=128, ffn=256, layers=layers, heads=4, kv_heads=2, k_heads=1, v_heads=2, head_dim=64, vocab=VOCAB,
        max_position=8192,
    )  # fmt: skip
    text["eos_token_id"] = 1193
    vision = {
        "model_type": "qwen3_5", "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2,
        "in_channels": 3, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 36, "out_hidden_size": 128, "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    }  # fmt: skip
    write_checkpoint(conditional_generation(text, vision) | PLACES, folder, dtype="F32")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    common = {
        "patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    pictures = common | {"size": {"shortest_edge": 1024, "longest_edge": 4096}}
    videos = common | {"size": {"shortest_edge": 1024, "longest_edge": 8192}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(pictures | {"image_processor_type": "Qwen2VLImageProcessorFast"})
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps(videos | {"video_processor_type": "Qwen3VLVideoProcessor"})
    )


def reference_tokens(
    model: PreTrainedModel, entry: VisionEntry, ids: Sequence[int], spans: Sequence[Span], count: int
) -> list[int]:
    """transformers' greedy continuation of a prompt, over the same patches."""
    media = list(dict.fromkeys(span.medium for span in spans))
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    kinds = np.zeros(len(ids), np.int64)
    for span in spans:
        kinds[span.start : span.end] = 1 if span.medium.kind == "image" else 2
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw"),
    ):  # fmt: skip
        if of_kind := [medium for medium in media if medium.kind == kind]:
            inputs[pixels] = torch.from_numpy(np.concatenate([_rows(medium, entry) for medium in of_kind]))
            inputs[grids] = torch.tensor([medium.grid for medium in of_kind])
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        made = model.generate(
            **inputs, mm_token_type_ids=torch.from_numpy(kinds)[None], max_new_tokens=count, do_sample=False,
            pad_token_id=0, suppress_tokens=list(range(SPELLED, VOCAB)),
        )  # fmt: skip
    return made[0, len(ids) :].tolist()


def _rows(medium: Medium, entry: VisionEntry) -> np.ndarray:
    made = patches(medium.frames, entry)
    return made.reshape(-1, made.shape[-1])
