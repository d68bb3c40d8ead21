"""From conversations with pictures to token batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from deltart.manifest import VisionEntry
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.medium import Medium
from deltart.runtime.vision.positions import positions
from tools.nano.corpus import reply_text
from tools.nano.sight import media, tasks
from tools.nano.tasks import Example, Sampler
from tools.nano.tokenizer import prompt_text

POOL = 12
"""Batches that are drawn and sorted by length together."""
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>"


@dataclass(frozen=True)
class Reader:
    """What turns examples into ids: the template, the tokenizer and the settings of a checkpoint."""

    template: PreTrainedTokenizerFast
    tokenizer: Tokenizer
    entry: VisionEntry


class Item(NamedTuple):
    """A conversation.

    Attributes:
        ids: tokens of all of it.
        positions: int64 [3, T].
        prompt: tokens before the last reply.
        trained: bool [T], True where the token belongs to a reply.
        media: what its placeholders stand for, in order.
    """

    ids: np.ndarray
    positions: np.ndarray
    prompt: int
    trained: np.ndarray
    media: list[Medium]


class Batch(NamedTuple):
    """Right-padded conversations: tokens [B, T] int64, trained [B, T] bool, positions [3, B, T], media in order."""

    tokens: torch.Tensor
    trained: torch.Tensor
    positions: torch.Tensor
    media: list[Medium]


def encode(reader: Reader, example: Example) -> Item:
    """A conversation with its reply; what the assistant said in earlier turns counts as replies too."""
    prompt = prompt_text(reader.template, example.messages, example.tools, example.enable_thinking)
    shown = [media.load(part, reader.entry) for part in media.parts(example.messages)]
    asked, spans = media.encode(prompt, shown, reader.tokenizer, reader.entry)
    reply = reader.tokenizer.encode(reply_text(example))
    ids = np.array([*asked, *reply])
    trained = np.zeros(len(ids), bool)
    trained[len(asked) :] = True
    if len(example.messages) > 1:
        begin, end = reader.tokenizer.encode(ASSISTANT), reader.tokenizer.encode(END)[0]
        for at in range(len(asked) - len(begin)):
            if ids[at : at + len(begin)].tolist() == begin:
                ends = np.flatnonzero(ids[at:] == end)
                trained[at + len(begin) : at + ends[0] + 1] |= at + ends[0] < len(asked)
    return Item(ids, positions(len(ids), spans), len(asked), trained, shown)


def batches(reader: Reader, sampler: Sampler, mixture: tasks.Mixture, tokens_per_batch: int) -> Iterator[Batch]:
    """Endless training batches of about tokens_per_batch tokens, each of similar lengths."""
    while True:
        pool: list[Item] = []
        while sum(len(item.ids) for item in pool) < POOL * tokens_per_batch:
            pool.append(encode(reader, tasks.conversation(sampler, mixture)))
        pool.sort(key=lambda item: len(item.ids))
        groups: list[list[Item]] = [[]]
        for item in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(item.ids) > tokens_per_batch:
                groups.append([])
            groups[-1].append(item)
        sampler.rng.shuffle(groups)
        yield from map(pad, groups)


def pad(group: list[Item]) -> Batch:
    """Right-pads conversations to their longest; padding is token 0, never trained on."""
    longest = max(len(item.ids) for item in group)
    tokens = torch.zeros(len(group), longest, dtype=torch.long)
    trained = torch.zeros(len(group), longest, dtype=torch.bool)
    places = torch.zeros(3, len(group), longest, dtype=torch.long)
    for row, item in enumerate(group):
        tokens[row, : len(item.ids)] = torch.from_numpy(item.ids)
        trained[row, : len(item.ids)] = torch.from_numpy(item.trained)
        places[:, row, : len(item.ids)] = torch.from_numpy(item.positions)
    return Batch(tokens, trained, places, [medium for item in group for medium in item.media])
