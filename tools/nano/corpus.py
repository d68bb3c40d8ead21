"""From examples to token batches: rendering, loss masks, length buckets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from tools.nano import tasks
from tools.nano.tokenizer import prompt_text

POOL = 20
"""Batches that are drawn and sorted by length together."""


class Batch(NamedTuple):
    """Right-padded sequences.

    Attributes:
        tokens: [B, T] int64.
        trained: [B, T] bool, True where the token belongs to the reply and is to be predicted.
    """

    tokens: torch.Tensor
    trained: torch.Tensor


def reply_text(example: tasks.Example) -> str:
    """What the model must generate after the prompt, its end of turn included."""
    thinking = f"{example.thought}\n</think>\n\n" if example.enable_thinking else ""
    return f"{thinking}{example.answer}<|im_end|>"


def _prompt(tokenizer: PreTrainedTokenizerFast, example: tasks.Example) -> str:
    return prompt_text(tokenizer, example.messages, example.tools, example.enable_thinking)


def encode(tokenizer: PreTrainedTokenizerFast, example: tasks.Example) -> tuple[list[int], int]:
    """(token ids of prompt and reply, length of the prompt)."""
    prompt = tokenizer.encode(_prompt(tokenizer, example), add_special_tokens=False)
    reply = tokenizer.encode(reply_text(example), add_special_tokens=False)
    return prompt + reply, len(prompt)


def batches(
    tokenizer: PreTrainedTokenizerFast,
    sampler: tasks.Sampler,
    mixture: tasks.Mixture,
    tokens_per_batch: int,
) -> Iterator[Batch]:
    """Endless training batches of about tokens_per_batch tokens, each of similar lengths."""
    while True:
        pool: list[tuple[list[int], int]] = []
        size = 0
        while size < POOL * tokens_per_batch:
            pool.append(encode(tokenizer, tasks.draw(sampler, mixture)))
            size += len(pool[-1][0])
        pool.sort(key=lambda item: len(item[0]))
        groups = list(_groups(pool, tokens_per_batch))
        sampler.rng.shuffle(groups)
        yield from map(pad, groups)


def _groups(pool: list[tuple[list[int], int]], tokens_per_batch: int) -> Iterator[list[tuple[list[int], int]]]:
    group: list[tuple[list[int], int]] = []
    for item in pool:
        if group and (len(group) + 1) * len(item[0]) > tokens_per_batch:
            yield group
            group = []
        group.append(item)
    yield group


def pad(group: list[tuple[list[int], int]]) -> Batch:
    """Right-pads token lists to their longest; padding is token 0 and never trained on."""
    longest = max(len(tokens) for tokens, _ in group)
    tokens = torch.zeros(len(group), longest, dtype=torch.long)
    trained = torch.zeros(len(group), longest, dtype=torch.bool)
    for row, (ids, prompt) in enumerate(group):
        tokens[row, : len(ids)] = torch.tensor(ids)
        trained[row, prompt : len(ids)] = True
    return Batch(tokens, trained)


def sample_texts(count: int, seed: int, template: PreTrainedTokenizerFast) -> list[str]:
    """Rendered conversations for learning the vocabulary."""
    sampler = tasks.Sampler(random.Random(seed))
    examples = (tasks.draw(sampler) for _ in range(count))
    return [_prompt(template, example) + reply_text(example) for example in examples]
