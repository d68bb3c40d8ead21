"""Nano through transformers: the greedy replies and MTP acceptance that other runtimes are held against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

from tools.nano.evaluate import MAX_NEW_TOKENS, Reply
from tools.nano.model import Nano
from tools.nano.tokenizer import stop_tokens

CHECKPOINT = Path(__file__).parent / "checkpoint"
GROUP = 64


class Acceptance(NamedTuple):
    """k=1 speculation: drafts verified and drafts accepted."""

    drafts: int
    accepted: int

    @property
    def mean(self) -> float:
        return self.accepted / self.drafts

    def plus(self, other: Acceptance) -> Acceptance:
        return Acceptance(self.drafts + other.drafts, self.accepted + other.accepted)


def load(folder: Path = CHECKPOINT) -> tuple[Nano, PreTrainedTokenizerFast]:
    """(the checkpoint with its BF16 weights in f32 arithmetic, its tokenizer)."""
    model = Nano.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


@torch.no_grad()
def greedy(model: Qwen3_5ForCausalLM, prompts: Sequence[Sequence[int]], stop: set[int]) -> list[list[int]]:
    """Greedy replies as token ids, the stop token included; prompts of one length share a batch."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    replies: list[list[int]] = [[] for _ in prompts]
    for rows in by_length.values():
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            tokens = torch.tensor([list(prompts[row]) for row in group])
            for row, reply in zip(group, _greedy_batch(model, tokens, stop), strict=True):
                replies[row] = reply
    return replies


def _greedy_batch(model: Qwen3_5ForCausalLM, tokens: torch.Tensor, stop: set[int]) -> list[list[int]]:
    replies: list[list[int]] = [[] for _ in range(len(tokens))]
    cache = None
    for _ in range(MAX_NEW_TOKENS):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        for reply, token in zip(replies, tokens[:, 0].tolist(), strict=True):
            if not reply or reply[-1] not in stop:
                reply.append(token)
        if all(reply[-1] in stop for reply in replies):
            break
    return replies


def replies(
    model: Qwen3_5ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> tuple[list[Reply], list[list[int]], list[list[int]]]:
    """(replies, prompts as tokens, replies as tokens); the first is what evaluate.score takes."""
    asked = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    stop = set(stop_tokens(tokenizer))
    answered = greedy(model, asked, stop)
    texts = []
    for tokens in answered:
        stopped = tokens[-1] in stop
        texts.append(Reply(str(tokenizer.decode(tokens[:-1] if stopped else tokens)), stopped))
    return texts, asked, answered


@torch.no_grad()
def acceptance(model: Nano, asked: Sequence[list[int]], answered: Sequence[list[int]]) -> Acceptance:
    """How many MTP drafts k=1 speculation would accept on the trunk's own greedy replies."""
    total = Acceptance(0, 0)
    for prompt, reply in zip(asked, answered, strict=True):
        tokens = torch.tensor([prompt + reply])
        drafted = model.draft_hidden(tokens, model.hidden(tokens))
        right = model.lm_head(drafted[0, :-1]).argmax(-1) == tokens[0, 2:]  # entry i is about token i + 2
        total = total.plus(accepted(right.tolist(), len(prompt), len(reply)))
    return total


def accepted(right: Sequence[bool], prompt: int, reply: int) -> Acceptance:
    """What k=1 speculation accepts of a reply of `reply` tokens after `prompt` tokens.

    Args:
        right: whether the draft for token i + 2 of them all is that token.
    """
    drafts = hits = 0
    at = prompt + 1
    while at < prompt + reply:
        hit = bool(right[at - 2])
        drafts, hits = drafts + 1, hits + hit
        at += 2 if hit else 1
    return Acceptance(drafts, hits)
