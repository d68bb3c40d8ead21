"""The tokenizer's and the template's files of a checkpoint: looked at before any work, brought into the artifact."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
TEMPLATES = "additional_chat_templates"


def check_text(checkpoint: Path) -> list[str]:
    """What an artifact of `checkpoint` will lack, a sentence each.

    Raises:
        DeltaRTError: a tokenizer or a template is there and can't be used.
    """
    lacks = []
    if (checkpoint / "tokenizer.json").exists():
        Tokenizer.from_folder(checkpoint)
    else:
        lacks.append("there is no tokenizer.json: the artifact can run token ids, not text")
    if ChatTemplate.is_in(checkpoint):
        ChatTemplate.from_folder(checkpoint)
    else:
        lacks.append("there is no chat template: the artifact can continue text, not chat")
    return lacks


def bring_text(checkpoint: Path, artifact: Path) -> list[str]:
    """Copy the files that are there, small ones which people edit; returns their names."""
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (checkpoint / TEMPLATES).glob("*.jinja"))
    brought = [name for name in (*FILES, *templates) if (checkpoint / name).exists()]
    for name in brought:
        (artifact / name).parent.mkdir(exist_ok=True)
        shutil.copyfile((checkpoint / name).resolve(), artifact / name)
    return brought
