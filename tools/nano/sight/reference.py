"""The seeing nano through transformers: the greedy replies and MTP acceptance that the runtime is held against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.positions import positions
from tools.nano.evaluate import Reply
from tools.nano.heldout import Question
from tools.nano.reference import Acceptance, accepted
from tools.nano.sight import media
from tools.nano.sight.corpus import Reader
from tools.nano.sight.export import CHECKPOINT, read
from tools.nano.sight.model import Seeing
from tools.nano.tokenizer import prompt_text

MAX_NEW_TOKENS = 64
GROUP = 32


class Asked(NamedTuple):
    """A rendered question: its ids, and where its media lie in them."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def media(self) -> list[Medium]:
        return list(dict.fromkeys(span.medium for span in self.spans))


def load(folder: Path = CHECKPOINT) -> tuple[Seeing, Reader]:
    """(the checkpoint with its BF16 weights in f32 arithmetic, what turns questions into ids)."""
    model = Seeing.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), read(folder)


def ask(reader: Reader, question: Question) -> Asked:
    """A question as the model sees it."""
    text = prompt_text(reader.template, question.messages, question.tools, question.enable_thinking)
    shown = [media.load(part, reader.entry) for part in media.parts(question.messages)]
    return Asked(*media.encode(text, shown, reader.tokenizer, reader.entry))


@torch.no_grad()
def greedy(
    model: Seeing, reader: Reader, asked: Sequence[Asked], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[list[int]]:
    """transformers' own greedy replies, the stop token included; prompts of one length share a batch."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(asked):
        by_length[len(prompt.ids)].append(index)
    replies: list[list[int]] = [[] for _ in asked]
    for rows in by_length.values():
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            made = model.generate(
                **inputs(reader, [asked[row] for row in group]), max_new_tokens=max_new_tokens, do_sample=False
            )[:, len(asked[group[0]].ids) :]
            for row, reply in zip(group, made.tolist(), strict=True):
                replies[row] = _ended(reply, reader)
    return replies


def inputs(reader: Reader, asked: Sequence[Asked]) -> dict[str, Any]:
    """What transformers takes for prompts of one length: ids, kinds of tokens, and the patches of all media."""
    kinds = np.zeros((len(asked), len(asked[0].ids)), np.int64)
    given: dict[str, Any] = {"input_ids": torch.tensor([prompt.ids for prompt in asked])}
    for row, prompt in enumerate(asked):
        for span in prompt.spans:
            kinds[row, span.start : span.end] = 1 if span.medium.kind == "image" else 2
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw"),
    ):  # fmt: skip
        of_kind = [medium for prompt in asked for medium in prompt.media if medium.kind == kind]
        if of_kind:
            made = [patches(medium.frames, reader.entry) for medium in of_kind]
            given[pixels] = torch.from_numpy(np.concatenate([each.reshape(-1, each.shape[-1]) for each in made]))
            given[grids] = torch.tensor([medium.grid for medium in of_kind])
    mask = torch.ones_like(given["input_ids"])
    return given | {"mm_token_type_ids": torch.from_numpy(kinds), "attention_mask": mask}


def replies(reader: Reader, answered: Sequence[list[int]]) -> list[Reply]:
    """What evaluate.score takes."""
    texts = []
    for tokens in answered:
        stopped = bool(tokens) and tokens[-1] in reader.tokenizer.eos_ids
        kept = tokens[:-1] if stopped else tokens
        texts.append(Reply(reader.tokenizer.decode(kept, skip_special=False), stopped))
    return texts


@torch.no_grad()
def acceptance(model: Seeing, reader: Reader, asked: Sequence[Asked], answered: Sequence[list[int]]) -> Acceptance:
    """How many MTP drafts k=1 speculation would accept on the trunk's own greedy replies."""
    total = Acceptance(0, 0)
    for prompt, reply in zip(asked, answered, strict=True):
        tokens = torch.tensor([[*prompt.ids, *reply]])
        places = torch.from_numpy(positions(tokens.shape[1], prompt.spans))[:, None]
        embedded = model.embedded(tokens, prompt.media, reader.entry)
        drafted = model.draft_hidden(embedded, model.hidden(embedded, places), places)
        right = model.lm_head(drafted[0, :-1]).argmax(-1) == tokens[0, 2:]  # entry i is about token i + 2
        total = total.plus(accepted(right.tolist(), len(prompt.ids), len(reply)))
    return total


def _ended(reply: list[int], reader: Reader) -> list[int]:
    """Up to the first stop token."""
    ends = [index for index, token in enumerate(reply) if token in reader.tokenizer.eos_ids]
    return reply[: ends[0] + 1] if ends else reply
