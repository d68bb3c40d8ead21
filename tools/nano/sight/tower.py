"""The first stage: the vision tower alone learns what lies in each block of a picture, before any text."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from deltart.manifest import VisionEntry
from deltart.runtime.vision.medium import Medium
from tools.nano.muon import Muon
from tools.nano.sight import media, tasks
from tools.nano.sight.model import Seeing
from tools.nano.sight.scenes import COLORS, SHAPES, Scene
from tools.nano.tasks import Sampler

KINDS = ("nothing", *SHAPES, *"0123456789")
PLACES = 9  # thirds of a picture, three by three


@dataclass(frozen=True)
class TowerRecipe:
    """Every number of this stage.

    Attributes:
        pictures: of a step.
        empty_weight: weight of a block in which nothing lies.
        warmup: steps of linear warm-up; from decay_from on the rates fall linearly, to zero at the last step.
    """

    steps: int = 1200
    seed: int = 91
    pictures: int = 64
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    empty_weight: float = 0.1
    warmup: int = 50
    decay_from: int = 700


class Labels(NamedTuple):
    """Of every block of some pictures, in the order of the tower's rows: int64 [rows] each, -1 where nothing lies."""

    kind: torch.Tensor
    color: torch.Tensor
    place: torch.Tensor


class Probe(nn.Module):
    """Linear readings of the tower's rows [n, H]: kind, colour and place of the thing whose middle lies in a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind, self.color = nn.Linear(width, len(KINDS)), nn.Linear(width, len(COLORS))
        self.place = nn.Linear(width, PLACES)

    def loss(self, rows: torch.Tensor, labels: Labels, empty_weight: float) -> tuple[torch.Tensor, float]:
        """(the loss, how many of the things are named right)."""
        weights = torch.ones(len(KINDS))
        weights[0] = empty_weight
        kinds, there = self.kind(rows).float(), labels.color >= 0
        loss = F.cross_entropy(kinds, labels.kind, weights)
        for head, wanted in ((self.color, labels.color), (self.place, labels.place)):
            loss = loss + F.cross_entropy(head(rows[there]).float(), wanted[there])
        right = kinds[there].argmax(-1) == labels.kind[there]
        return loss, right.float().mean().item()


def labels(scene: Scene, medium: Medium) -> Labels:
    """What lies in the blocks of a picture, by the middles of its things."""
    rows, columns = medium.block_rows, medium.block_columns
    kind, color, place = (torch.full((rows * columns,), empty) for empty in (0, -1, -1))
    for thing in scene.things:
        right, down = thing.x / scene.width, thing.y / scene.height
        block = min(int(down * rows), rows - 1) * columns + min(int(right * columns), columns - 1)
        kind[block] = KINDS.index(thing.shape)
        color[block] = list(COLORS).index(thing.color)
        place[block] = min(int(3 * down), 2) * 3 + min(int(3 * right), 2)
    return Labels(kind, color, place)


def batches(sampler: Sampler, entry: VisionEntry, pictures: int) -> Iterator[tuple[list[Medium], Labels]]:
    """Endless pictures of the still skills, with what lies in them."""
    weights = [tasks.BROAD[skill] for skill in tasks.STILL]
    while True:
        shown, known = list[Medium](), list[Labels]()
        for skill in sampler.rng.choices(tasks.STILL, weights, k=pictures):
            part = next(media.parts(skill(sampler).messages))
            shown.append(media.load(part, entry))
            known.append(labels(Scene.from_json(part["scene"]), shown[-1]))
        yield shown, Labels(*map(torch.cat, zip(*known, strict=True)))


def train(model: Seeing, entry: VisionEntry, recipe: TowerRecipe, log_every: int = 50) -> list[float]:
    """Trains `model`'s tower in place; the share of things named right, every log_every steps."""
    torch.manual_seed(recipe.seed)
    tower, probe = model.model.visual, Probe(model.config.vision_config.out_hidden_size)
    optimizers = _optimizers(tower, probe, recipe)
    sampler = Sampler(random.Random(recipe.seed))
    source, begun, shares = batches(sampler, entry, recipe.pictures), time.monotonic(), list[float]()
    for step in range(recipe.steps):
        fall = 1.0 if step < recipe.decay_from else (recipe.steps - step) / (recipe.steps - recipe.decay_from)
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / recipe.warmup) * fall
            optimizer.zero_grad()
        shown, known = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = probe.loss(model.rows(shown, entry), known, recipe.empty_weight)
        loss.backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *probe.parameters()], 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        if (step + 1) % log_every == 0:
            shares.append(right)
            spent = (time.monotonic() - begun) / (step + 1)
            print(
                f"step {step + 1}/{recipe.steps}  loss {loss.item():.4f}  named {right:.3f}  {spent:.2f} s/step",
                flush=True,
            )
    return shares


def _optimizers(tower: nn.Module, probe: Probe, recipe: TowerRecipe) -> Sequence[tuple[torch.optim.Optimizer, float]]:
    matrices = [p for name, p in tower.named_parameters() if p.ndim > 1 and "pos_embed" not in name]
    others = [p for name, p in tower.named_parameters() if p.ndim == 1 or "pos_embed" in name]
    adam = torch.optim.AdamW([*others, *probe.parameters()], recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [(Muon(matrices, recipe.muon_rate), recipe.muon_rate), (adam, recipe.adam_rate)]
