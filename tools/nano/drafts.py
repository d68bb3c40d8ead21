"""Trains the MTP head to draft several tokens in a row; the trunk stays as it is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, PreTrainedTokenizerFast

from tools.nano import corpus, gdn, tasks
from tools.nano.model import Nano
from tools.nano.muon import Muon


@dataclass(frozen=True)
class DraftRecipe:
    """Every number of this training.

    Attributes:
        depth: drafts in a row; the loss is the mean over them.
        warmup: steps of linear warm-up; from then on the rates fall linearly, to zero at the last step.
    """

    steps: int = 600
    seed: int = 37
    depth: int = 4
    tokens_per_batch: int = 4096
    muon_rate: float = 0.01
    adam_rate: float = 0.001
    warmup: int = 20


def chain(model: Nano, tokens: torch.Tensor, hidden: torch.Tensor, depth: int) -> Iterator[torch.Tensor]:
    """States of `depth` drafts in a row from every token: the d-th [B, T-d, H], row i of which predicts token i+d+1.

    Draft d reads token i+d and the state of the draft before it. It attends to the head's entries up to row i, made
    from the trunk's states, and to those of its own chain, as at run time.

    Args:
        tokens: [B, T].
        hidden: [B, T, H], the trunk's states after the final norm.
    """
    head, cache = model.mtp, DynamicCache()
    rows = tokens.shape[1] - depth
    places = torch.arange(rows)
    seen = places[:, None] >= places  # [rows, rows], entries of the trunk's states
    own = torch.zeros(rows, 0, dtype=torch.bool)
    state = hidden[:, :rows]
    for draft in range(1, depth + 1):
        embedded = model.model.embed_tokens(tokens[:, draft : rows + draft])
        rotary = model.model.rotary_emb(state, (places + draft - 1).expand(3, len(tokens), -1))
        joined = torch.cat([head.pre_fc_norm_embedding(embedded), head.pre_fc_norm_hidden(state)], dim=-1)
        allowed = torch.cat([seen, own], dim=1)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[None, None]
        mixed = head.layers[0](head.fc(joined), position_embeddings=rotary, attention_mask=mask, past_key_values=cache)
        state = head.norm(mixed)
        own = torch.cat([own, torch.eye(rows, dtype=torch.bool)], dim=1)
        yield state


def chain_loss(model: Nano, batch: corpus.Batch, depth: int) -> tuple[torch.Tensor, list[float]]:
    """Mean cross-entropy of the drafts against the trunk's likeliest tokens, and how often each draft is one."""
    with torch.no_grad():
        hidden = model.hidden(batch.tokens)
        likeliest = model.lm_head(hidden).argmax(-1)  # column i is about token i+1
    rows = batch.tokens.shape[1] - depth - 1  # whose last draft is about a token of the batch
    losses, right = list[torch.Tensor](), list[float]()
    for draft, state in enumerate(chain(model, batch.tokens, hidden, depth), 1):
        trained = batch.trained[:, draft + 1 : draft + 1 + rows]
        target = likeliest[:, draft : draft + rows]
        logits = model.lm_head(state[:, :rows][trained])
        losses.append(F.cross_entropy(logits.float(), target[trained]))
        right.append((logits.argmax(-1) == target[trained]).float().mean().item())
    return torch.stack(losses).mean(), right


def train(model: Nano, words: PreTrainedTokenizerFast, recipe: DraftRecipe, log_every: int = 20) -> None:
    """Trains `model.mtp` in place."""
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    matrices = [p for p in model.mtp.parameters() if p.ndim == 2]
    others = [p for p in model.mtp.parameters() if p.ndim != 2]
    optimizers = [
        Muon(matrices, recipe.muon_rate),
        torch.optim.AdamW(others, recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    sampler = tasks.Sampler(random.Random(recipe.seed))
    source = corpus.batches(words, sampler, tasks.HARD, recipe.tokens_per_batch)
    begun = time.monotonic()
    for step in range(recipe.steps):
        factor = min(1.0, (step + 1) / recipe.warmup) * (1 - step / recipe.steps)
        for optimizer, rate in zip(optimizers, (recipe.muon_rate, recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        with gdn.installed():
            loss, right = chain_loss(model, next(source), recipe.depth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.mtp.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % log_every == 0:
            spent = (time.monotonic() - begun) / (step + 1)
            shares = " ".join(f"{share:.3f}" for share in right)
            print(
                f"step {step + 1}/{recipe.steps}  loss {loss.item():.4f}  right {shares}  {spent:.2f} s/step",
                flush=True,
            )


def write(model: Nano, folder: Path) -> None:
    """The head's weights into the checkpoint `folder`, in BF16; all others stay as they are."""
    path = folder / "model.safetensors"
    head = {f"mtp.{name}": value.to(torch.bfloat16).contiguous() for name, value in model.mtp.state_dict().items()}
    staged = path.with_suffix(".new")
    save_file(load_file(path) | head, staged, metadata={"format": "pt"})
    staged.chmod(path.stat().st_mode)
    staged.replace(path)


@torch.no_grad()
def acceptance(model: Nano, asked: Sequence[list[int]], answered: Sequence[list[int]], depth: int) -> list[float]:
    """Of each draft in a row, how often it is the trunk's token where those before it were, over all of the replies."""
    reached, right = [0] * depth, [0] * depth
    for prompt, reply in zip(asked, answered, strict=True):
        tokens = torch.tensor([prompt + reply])
        if tokens.shape[1] <= depth + 1:
            continue
        begin, going = len(prompt) - 1, torch.ones(tokens.shape[1] - depth - 1, dtype=torch.bool)
        for draft, state in enumerate(chain(model, tokens, model.hidden(tokens), depth), 1):
            rows = tokens.shape[1] - depth - 1
            hit = model.lm_head(state[0, :rows]).argmax(-1) == tokens[0, draft + 1 : draft + 1 + rows]
            reached[draft - 1] += int(going[begin:].sum())
            going &= hit
            right[draft - 1] += int(going[begin:].sum())
    return [r / max(n, 1) for r, n in zip(right, reached, strict=True)]
