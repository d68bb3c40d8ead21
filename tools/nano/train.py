"""Trains nano from nothing, resumably, on the CPU."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3_5TextConfig

from tools.nano import corpus, gdn, tasks, tokenizer
from tools.nano.model import Nano, new_model, text_fields
from tools.nano.muon import Muon


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run.

    Attributes:
        steps: optimizer steps; one step sees about tokens_per_batch tokens.
        warmup: steps of linear warm-up.
        decay_from: step from which the learning rate falls linearly, to zero at the last step.
        easy_steps: first steps, over which the strings grow to full length.
        broad_steps: first steps, with the broad mixture of skills; the hard one follows.
        mtp_weight: weight of the MTP head's cross-entropy beside the trunk's.
        mtp_every: after the broad steps, the MTP head trains on one step in this many.
    """

    steps: int = 2800
    seed: int = 36
    tokens_per_batch: int = 4096
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    warmup: int = 100
    decay_from: int = 1200
    easy_steps: int = 800
    broad_steps: int = 1200
    mtp_weight: float = 0.2
    mtp_every: int = 4


def trunk_loss(model: Nano, batch: corpus.Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over the replies."""
    trained = batch.trained[:, 1:]
    logits = model.lm_head(hidden[:, :-1][trained])
    return F.cross_entropy(logits.float(), batch.tokens[:, 1:][trained])


def mtp_loss(model: Nano, batch: corpus.Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the token after the next, through the MTP head, over the replies."""
    trained = batch.trained[:, 2:]
    drafts = model.lm_head(model.draft_hidden(batch.tokens, hidden)[:, :-1][trained])
    return F.cross_entropy(drafts.float(), batch.tokens[:, 2:][trained])


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm-up, stable, linear decay (WSD)."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    if step < recipe.decay_from:
        return warm
    return warm * (recipe.steps - step) / (recipe.steps - recipe.decay_from)


def optimizers(model: Nano, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, head, norms, convolutions and decays."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        outer = "embed_tokens" in name or "lm_head" in name or "in_proj_a" in name or "in_proj_b" in name
        (matrices if parameter.ndim == 2 and not outer else others).append(parameter)
    return [
        Muon(matrices, recipe.muon_rate),
        torch.optim.AdamW(others, recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass
class Run:
    """A training run in a work folder: state.pt to resume from, log.jsonl for the curve."""

    recipe: Recipe
    folder: Path
    words: PreTrainedTokenizerFast
    model: Nano
    step: int = 0

    def train(self, save_every: int = 200, log_every: int = 20) -> None:
        """Trains to the recipe's last step, continuing from the folder's state when there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.optimizers = optimizers(self.model, self.recipe)
        self._resume()
        begun, first = time.monotonic(), self.step
        while self.step < self.recipe.steps:
            with gdn.installed():
                trunk, mtp = self._steps(min(log_every, self.recipe.steps - self.step))
            spent = (time.monotonic() - begun) / (self.step - first)
            self._report(trunk, mtp, spent)
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self._save()

    def _steps(self, count: int) -> tuple[float, float]:
        """`count` steps on batches seeded by the step number, so that a resumed run sees the same data."""
        ease = max(0.0, 1 - self.step / self.recipe.easy_steps)
        rng = random.Random(f"{self.recipe.seed}:{self.step}")
        sampler = tasks.Sampler(rng, ease=0.6 * ease)
        mixture = tasks.BROAD if self.step < self.recipe.broad_steps else tasks.HARD
        source = corpus.batches(self.words, sampler, mixture, self.recipe.tokens_per_batch)
        results = [self._one_step(next(source)) for _ in range(count)]
        drafts = [mtp for _, mtp in results if mtp is not None]
        return fmean(trunk for trunk, _ in results), fmean(drafts or [math.nan])

    def _one_step(self, batch: corpus.Batch) -> tuple[float, float | None]:
        factor = rate_factor(self.step, self.recipe)
        for optimizer, rate in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        drafting = self.step < self.recipe.broad_steps or self.step % self.recipe.mtp_every == 0
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.hidden(batch.tokens)
            trunk = trunk_loss(self.model, batch, hidden)
            mtp = mtp_loss(self.model, batch, hidden) if drafting else None
        (trunk if mtp is None else trunk + self.recipe.mtp_weight * mtp).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return trunk.item(), None if mtp is None else mtp.item()

    def _report(self, trunk: float, mtp: float, seconds: float) -> None:
        if not math.isfinite(trunk):
            raise ValueError(f"the loss became {trunk} at step {self.step}")
        left = seconds * (self.recipe.steps - self.step) / 60
        line = {
            "step": self.step,
            "loss": round(trunk, 5),
            "mtp_loss": round(mtp, 5),
            "s_per_step": round(seconds, 3),
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(
            f"step {self.step}/{self.recipe.steps}  loss {trunk:.4f}  mtp {mtp:.4f}  "
            f"{seconds:.2f} s/step  {left:.0f} min left",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The vocabulary learnt from 20,000 seeded training conversations."""
    template = tokenizer.build([], 1)
    return tokenizer.build(corpus.sample_texts(20_000, seed, template), min_count=20)


def start(recipe: Recipe, folder: Path) -> Run:
    """A run in `folder`, new or continued."""
    known = build_tokenizer(recipe.seed)
    _, text_end = tokenizer.stop_tokens(known)
    config = Qwen3_5TextConfig(**text_fields(tokenizer.padded_size(known), text_end))
    return Run(recipe, folder, known, new_model(config, recipe.seed))
