"""The seeing nano's checkpoint folder, in the family's layout: configs, tokenizer, template, and the weights."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from deltart.export.spec import read_spec
from deltart.export.vision_settings import read_settings
from deltart.runtime.text.tokenizer import Tokenizer
from tools.nano.export import TEXT_FIELDS, generation_config, tokenizer_config
from tools.nano.sight.corpus import Reader
from tools.nano.sight.model import Seeing, config_fields
from tools.nano.tokenizer import padded_size, stop_tokens

CHECKPOINT = Path(__file__).parent / "checkpoint"
PIXELS = {"image": (4096, 32768), "video": (8192, 65536)}  # smallest and largest count; a video's over its frames
PROCESSORS = {
    "image": ("preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessorFast"}),
    "video": ("video_preprocessor_config.json", {"video_processor_type": "Qwen3VLVideoProcessor"}),
}


def write_texts(tokenizer: PreTrainedTokenizerFast, folder: Path, template: str) -> None:
    """Every file but the weights.

    Args:
        tokenizer: nano's.
        template: text of the chat template.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _, text_end = stop_tokens(tokenizer)
    fields = config_fields(tokenizer.get_vocab(), padded_size(tokenizer), text_end)
    _write_json(folder / "config.json", config(fields))
    _write_json(folder / "generation_config.json", generation_config(tokenizer))
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    (folder / "chat_template.jinja").write_text(template)
    for kind, (name, own) in PROCESSORS.items():
        _write_json(folder / name, processor(kind) | own)


def config(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those of text_config that the family spells out and transformers takes for granted."""
    known = Seeing.config_class(**deepcopy(fields)).to_dict()
    text = known["text_config"] | fields["text_config"]
    text["model_type"] = "qwen3_5_text"
    whole = fields | {"model_type": "qwen3_5"}
    whole["text_config"] = {name: text[name] for name in TEXT_FIELDS}
    return dict(sorted(whole.items()))


def processor(kind: str) -> dict[str, Any]:
    """A preprocessor file, in the vendor's form."""
    lowest, highest = PIXELS[kind]
    return {
        "size": {"longest_edge": highest, "shortest_edge": lowest},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }


def write_weights(model: Seeing, folder: Path) -> None:
    """model.safetensors, in BF16; an earlier one stays until the new one is whole."""
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    staged = folder / "model.new"
    save_file(weights, staged, metadata={"format": "pt"})
    staged.chmod(0o644)
    staged.replace(folder / "model.safetensors")


def read(folder: Path = CHECKPOINT) -> Reader:
    """What turns conversations into ids, by the files of the checkpoint `folder`."""
    vision = read_spec(folder).vision
    if vision is None:
        raise ValueError(f"{folder}: a checkpoint without a vision tower")
    template = PreTrainedTokenizerFast.from_pretrained(folder)
    return Reader(template, Tokenizer.from_folder(folder), read_settings(folder, vision))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
