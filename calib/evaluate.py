"""What quantization does to the model: drift by depth and next-token agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deltart.calib.forward import LayerPass, Values, batches_of, real_tokens, sweep
from deltart.calib.memory import release
from deltart.calib.progress import Progress
from deltart.calib.selection import block_key
from deltart.calib.variants import Variant
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec

PIECE_ELEMENTS = 1 << 22  # logits at a time


@dataclass
class Fidelity:
    """Next-token distributions against the reference's, and ||h - h_ref||^2 / ||h_ref||^2 after each layer.

    Attributes:
        kl: mean of KL(reference || variant) over tokens, in nats.
        top1: share of tokens with the reference's most likely next token.
        perplexity: of the text itself.
    """

    kl: float = 0.0
    top1: float = 1.0
    perplexity: float = math.nan
    drift: dict[str, float] = field(default_factory=dict)


def evaluate(
    reference: Variant, variants: Sequence[Variant], rows: Sequence[Sequence[int]], progress: Progress
) -> tuple[float, dict[str, Fidelity]]:
    """The reference's perplexity, and each variant's Fidelity on token rows.

    All run in lockstep, layer by layer, one layer of one variant in memory at a time; `progress` counts layers.
    """
    everyone = [reference, *variants]
    results = {variant.name: Fidelity() for variant in variants}
    sweeps = [sweep(v.spec, v.tensors, batches_of(rows)) for v in everyone]
    final: dict[str, list[Values]] = {}
    for key in layers_of(reference.spec):
        expected: list[Values] = []
        for variant, steps in zip(everyone, sweeps, strict=True):
            batches = _run(variant, steps)
            expected = expected or batches
            if variant is not reference:
                results[variant.name].drift[key] = relative_change([values["h"] for values in batches], expected)
            if not key.startswith(reference.spec.mtp_prefix):
                final[variant.name] = batches
        progress.advance(1, key)
        release()
    for steps in sweeps:
        next(steps, None)  # a sweep puts `hidden` into the batches that left the last text layer as it goes on
    counts = _count(reference, [final[variant.name] for variant in everyone])
    tokens = counts[0].seen
    for agreement, count in zip(results.values(), counts[1:], strict=True):
        agreement.kl = count.divergence_of(counts[0])
        agreement.top1 = float((count.arg == counts[0].arg).float().mean())
        agreement.perplexity = math.exp(float(count.loss[tokens].mean()))
    return math.exp(float(counts[0].loss[tokens].mean())), results


def divergences(reference: Variant, expected: list[Values], others: Sequence[list[Values]]) -> list[float]:
    """KL in nats of next-token distributions from the reference's, given the final normed states of each."""
    first, *counts = _count(reference, [expected, *others])
    return [count.divergence_of(first) for count in counts]


def layers_of(spec: ModelSpec) -> list[str]:
    """Names of the layers, the MTP head's last."""
    return [block_key(b) for graph in graphs_of(spec, torch.float32, mtp=True) for b in graph.blocks if b.states]


def relative_change(own: Sequence[Tensor], expected: Sequence[Values]) -> float:
    """||h - h_ref||^2 / ||h_ref||^2 over all real tokens, for each batch's h."""
    error = energy = 0.0
    for h, values in zip(own, expected, strict=True):
        real = real_tokens(values)
        error += float((h - values["h"])[real].square().sum())
        energy += float(values["h"][real].square().sum())
    return error / energy


def _run(variant: Variant, steps: Iterator[LayerPass]) -> list[Values]:
    step = next(steps)
    variant.prepare(step)
    step.run()
    return step.batches


class _Counter:
    """Log-sum-exp, argmax, loss and cross terms over a vocabulary that comes in pieces; one entry per token."""

    def __init__(self, targets: Tensor) -> None:
        n = len(targets)
        self.targets, self.seen = targets, targets >= 0
        self.peak, self.total, self.cross = torch.full((n,), -torch.inf), torch.zeros(n), torch.zeros(n)
        self.best, self.arg = torch.full((n,), -torch.inf), torch.zeros(n, dtype=torch.long)
        self.aim = torch.zeros(n)

    def add(self, logits: Tensor, begin: int) -> None:
        value, index = logits.max(1)
        peak = torch.maximum(self.peak, value)
        self.total = self.total * (self.peak - peak).exp() + (logits - peak[:, None]).exp().sum(1)
        self.arg = torch.where(value > self.best, index + begin, self.arg)
        self.best, self.peak = torch.maximum(self.best, value), peak
        here = (self.targets >= begin) & (self.targets < begin + logits.shape[1])
        self.aim[here] = logits[here, self.targets[here] - begin]

    def add_cross(self, reference: Tensor, logits: Tensor, before: Tensor, peak: Tensor) -> None:
        """Sum of e^(p - peak) (p - q), where the reference's peak rises from `before` to `peak`."""
        here = ((reference - peak[:, None]).exp() * (reference - logits)).sum(1)
        self.cross = self.cross * (before - peak).exp() + here

    def divergence_of(self, reference: _Counter) -> float:
        """Mean of KL(reference || this) over tokens, in nats."""
        return float((self.cross / reference.total - reference.log_total + self.log_total).mean())

    @property
    def log_total(self) -> Tensor:
        return self.peak + self.total.log()

    @property
    def loss(self) -> Tensor:
        return self.log_total - self.aim


def _count(reference: Variant, batches: Sequence[Sequence[Values]]) -> list[_Counter]:
    """Counters of the reference and of each variant, over the vocabulary in pieces."""
    head = graphs_of(reference.spec, torch.float32, mtp=False)[0].blocks[-1]
    name = head.tensor_name("lm_head.weight")
    hidden = [torch.cat([values["hidden"][real_tokens(values)] for values in own]) for own in batches]
    targets = torch.cat([_targets(values) for values in batches[0]])
    counters = [_Counter(targets) for _ in hidden]
    height = max(128, PIECE_ELEMENTS // max(len(targets), hidden[0].shape[1]))
    for begin in range(0, reference.tensors[name].shape[0], height):
        piece = reference.tensors.read(name)[begin : begin + height]  # mapped anew: what was read before is let go
        weight = torch.from_numpy(np.asarray(piece).astype(np.float32))
        expected, before = hidden[0] @ weight.T, counters[0].peak
        counters[0].add(expected, begin)
        for own, counter in zip(hidden[1:], counters[1:], strict=True):
            logits = own @ weight.T
            counter.add(logits, begin)
            counter.add_cross(expected, logits, before, counters[0].peak)
    return counters


def _targets(values: Values) -> Tensor:
    """The next token of every real token, -1 after a row's last."""
    ids = values["input_ids"]
    following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)
    last = torch.arange(ids.shape[1]) == values["n_tokens"][:, None] - 1
    return following.masked_fill(last, -1)[real_tokens(values)]
