"""Trains the seeing nano from nano's weights, resumably, on the CPU."""

from __future__ import annotations

import json
import math
import random
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tools.nano import corpus as texts
from tools.nano import gdn, reference, tasks
from tools.nano.muon import Muon
from tools.nano.sight import corpus
from tools.nano.sight import tasks as sights
from tools.nano.sight.corpus import Reader
from tools.nano.sight.export import CHECKPOINT, config, read
from tools.nano.sight.model import Seeing, config_fields, new_model
from tools.nano.sight.tower import TowerRecipe
from tools.nano.sight.tower import train as train_tower
from tools.nano.tokenizer import padded_size, stop_tokens


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run.

    Attributes:
        steps: optimizer steps; each sees about sight_tokens of conversations with pictures and text_tokens of nano's.
        text_weight: weight of the loss of nano's own conversations beside that of those with pictures.
        tower_rate, trunk_rate: Muon's, for matrices of the vision tower and of nano.
        tower_adam, trunk_adam: AdamW's, for all else.
        warmup: steps of linear warm-up.
        decay_from: step from which the rates fall linearly, to zero at the last step.
        easy_steps: first steps, with rows and numbers of two at most.
        broad_steps: first steps, with the broad mixture of skills; the hard one follows.
        mtp_weight: weight of the MTP head's loss, on one step in mtp_every.
        tower: of the stage before, the tower's own.
    """

    steps: int = 1350
    seed: int = 90
    sight_tokens: int = 2600
    text_tokens: int = 700
    text_weight: float = 0.5
    tower_rate: float = 0.01
    trunk_rate: float = 0.008
    tower_adam: float = 0.001
    trunk_adam: float = 0.001
    warmup: int = 60
    decay_from: int = 750
    easy_steps: int = 300
    broad_steps: int = 500
    mtp_weight: float = 0.2
    mtp_every: int = 4
    tower: TowerRecipe = field(default_factory=TowerRecipe)


class Losses(NamedTuple):
    """Mean cross-entropies over the replies: with pictures, of nano's own conversations, of the MTP head."""

    sight: float
    text: float
    mtp: float


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm-up, stable, linear decay."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    if step < recipe.decay_from:
        return warm
    return warm * (recipe.steps - step) / (recipe.steps - recipe.decay_from)


def optimizers(model: Seeing, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for hidden matrices, AdamW for the rest, each with its rate; tower and trunk apart."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        tower = name.startswith("model.visual.")
        outer = any(part in name for part in ("pos_embed", "embed_tokens", "lm_head", "in_proj_a", "in_proj_b"))
        key = tower, parameter.ndim > 1 and not outer and (tower or parameter.ndim == 2)
        groups.setdefault(key, []).append(parameter)
    found: list[tuple[torch.optim.Optimizer, float]] = []
    for (tower, matrix), parameters in groups.items():
        if matrix:
            rate = recipe.tower_rate if tower else recipe.trunk_rate
            found.append((Muon(parameters, rate), rate))
        else:
            rate = recipe.tower_adam if tower else recipe.trunk_adam
            found.append((torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.0), rate))
    return found


def reply_loss(model: Seeing, states: torch.Tensor, tokens: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy where `trained` of tokens [B, n], each from the state [B, n, H] at its place."""
    return F.cross_entropy(model.lm_head(states[trained]).float(), tokens[trained])


@dataclass
class Run:
    """A training run in a work folder: tower.pt of the first stage, state.pt to go on from, log.jsonl for the curve."""

    recipe: Recipe
    folder: Path
    reader: Reader
    model: Seeing
    step: int = 0

    def train(self, save_every: int = 100, log_every: int = 20) -> None:
        """Trains to the recipe's last step, continuing from the folder's state when there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.optimizers = optimizers(self.model, self.recipe)
        self._resume()
        begun, first = time.monotonic(), self.step
        while self.step < self.recipe.steps:
            losses = self._steps(min(log_every, self.recipe.steps - self.step))
            self._report(losses, (time.monotonic() - begun) / (self.step - first))
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self._save()

    def _steps(self, count: int) -> Losses:
        """`count` steps on batches seeded by the step number, so that a resumed run sees the same data."""
        rng = random.Random(f"{self.recipe.seed}:{self.step}")
        sampler = tasks.Sampler(rng, ease=1.0 if self.step < self.recipe.easy_steps else 0.0)
        mixture = sights.BROAD if self.step < self.recipe.broad_steps else sights.HARD
        shown = corpus.batches(self.reader, sampler, mixture, self.recipe.sight_tokens)
        plain = texts.batches(self.reader.template, sampler, tasks.HARD, self.recipe.text_tokens)
        with gdn.installed():
            results = [self._one_step(next(shown), next(plain)) for _ in range(count)]
        drafts = [losses.mtp for losses in results if not math.isnan(losses.mtp)]
        sight, text = (fmean(losses[i] for losses in results) for i in range(2))
        return Losses(sight, text, fmean(drafts or [math.nan]))

    def _one_step(self, batch: corpus.Batch, plain: texts.Batch) -> Losses:
        factor = rate_factor(self.step, self.recipe)
        for optimizer, rate in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        drafting = self.step % self.recipe.mtp_every == 0
        with torch.autocast("cpu", torch.bfloat16):
            sight, mtp = self._losses(batch, drafting)
            (sight if mtp is None else sight + self.recipe.mtp_weight * mtp).backward()
            places = torch.arange(plain.tokens.shape[1]).expand(3, len(plain.tokens), -1)
            text, _ = self._losses(corpus.Batch(plain.tokens, plain.trained, places, []), False)
            (self.recipe.text_weight * text).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.step += 1
        return Losses(sight.item(), text.item(), math.nan if mtp is None else mtp.item())

    def _losses(self, batch: corpus.Batch, drafting: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        model, tokens, trained = self.model, batch.tokens, batch.trained
        embedded = model.embedded(tokens, batch.media, self.reader.entry)
        hidden = model.hidden(embedded, batch.positions)
        loss = reply_loss(model, hidden[:, :-1], tokens[:, 1:], trained[:, 1:])
        if not drafting:
            return loss, None
        states = model.draft_hidden(embedded, hidden, batch.positions)
        return loss, reply_loss(model, states[:, :-1], tokens[:, 2:], trained[:, 2:])

    def _report(self, losses: Losses, seconds: float) -> None:
        if not math.isfinite(losses.sight):
            raise ValueError(f"the loss became {losses.sight} at step {self.step}")
        rounded = {f"{name}_loss": round(loss, 5) for name, loss in losses._asdict().items()}
        line = {"step": self.step, **rounded, "s_per_step": round(seconds, 3)}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        left = seconds * (self.recipe.steps - self.step) / 60
        print(
            f"step {self.step}/{self.recipe.steps}  sight {losses.sight:.4f}  text {losses.text:.4f}  "
            f"mtp {losses.mtp:.4f}  {seconds:.2f} s/step  {left:.0f} min left",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
        }
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _resume(self) -> None:
        path, tower = self.folder / "state.pt", self.folder / "tower.pt"
        if not path.exists():
            self._begin(tower)
            return
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _begin(self, path: Path) -> None:
        """The tower's own stage, or what an earlier run kept of it."""
        tower = self.model.model.visual
        if not path.exists():
            train_tower(self.model, self.reader.entry, self.recipe.tower)
            torch.save(tower.state_dict(), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        tower.load_state_dict(torch.load(path, weights_only=True))


def start(recipe: Recipe, folder: Path, checkpoint: Path = CHECKPOINT) -> Run:
    """A run in `folder`, new or continued, by the files of `checkpoint`."""
    nano, words = reference.load()
    _, text_end = stop_tokens(words)
    fields = config(config_fields(words.get_vocab(), padded_size(words), text_end))
    model = new_model(Seeing.config_class(**deepcopy(fields)), nano, recipe.seed)
    return Run(recipe, folder, read(checkpoint), model)
