"""Trains nano from nothing, resumably, on the CPU."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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
        decay: share of the run, at its end, over which the learning rate falls linearly to zero.
        easy_steps: first steps, over which the strings grow to full length.
        broad_steps: first steps, with the broad mixture of skills; the hard one follows.
        mtp_weight: weight of the MTP head's cross-entropy beside the trunk's.
    """

    steps: int = 3000
    seed: int = 36
    tokens_per_batch: int = 4096
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    warmup: int = 100
    decay: float = 0.6
    easy_steps: int = 800
    broad_steps: int = 1200
    mtp_weight: float = 0.2


def losses(model: Nano, batch: corpus.Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the reply's tokens: (of the trunk, of the MTP head)."""
    hidden = model.hidden(batch.tokens)
    drafted = model.draft_hidden(batch.tokens, hidden)
    after_one, after_two = batch.trained[:, 1:], batch.trained[:, 2:]
    logits = model.lm_head(hidden[:, :-1][after_one])
    drafts = model.lm_head(drafted[:, :-1][after_two])
    trunk = F.cross_entropy(logits.float(), batch.tokens[:, 1:][after_one])
    return trunk, F.cross_entropy(drafts.float(), batch.tokens[:, 2:][after_two])


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm-up, stable, linear decay (WSD)."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


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
        gdn.install()
        self.optimizers = optimizers(self.model, self.recipe)
        self._resume()
        begun, first = time.monotonic(), self.step
        while self.step < self.recipe.steps:
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
        sums = [0.0, 0.0]
        for _ in range(count):
            for index, value in enumerate(self._one_step(next(source))):
                sums[index] += value / count
        return sums[0], sums[1]

    def _one_step(self, batch: corpus.Batch) -> tuple[float, float]:
        factor = rate_factor(self.step, self.recipe)
        for optimizer, rate in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            trunk, mtp = losses(self.model, batch)
        (trunk + self.recipe.mtp_weight * mtp).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return trunk.item(), mtp.item()

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
