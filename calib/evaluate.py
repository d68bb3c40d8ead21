"""What quantization does to the model: drift by depth, next-token agreement, and which sites cost most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltart.calib.forward import Step, Values, batches_of, real_tokens, run_block, sweep
from deltart.calib.layout import Site
from deltart.export.checkpoint import Checkpoint
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec

VOCAB_ROWS = 8192  # of the output head at a time
BUDGETS = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Variant:
    """A model to compare. `prepare` may replace weights of a layer before it runs."""

    name: str
    spec: ModelSpec
    tensors: Checkpoint
    prepare: Callable[[Step], None] = lambda step: None


@dataclass
class Agreement:
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


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one site alone does to its layer's output, relative and squared, and what keeping it costs."""

    modules: tuple[str, ...]
    perturbation: float
    extra_bytes: int


def evaluate(
    reference: Variant, variants: Sequence[Variant], rows: Sequence[Sequence[int]]
) -> tuple[float, dict[str, Agreement]]:
    """The reference's perplexity, and each variant's Agreement on token rows; all run in lockstep, layer by layer."""
    everyone = [reference, *variants]
    results = {variant.name: Agreement() for variant in variants}
    last: list[Step] = []
    for steps in zip(*(sweep(v.spec, v.tensors, batches_of(rows)) for v in everyone), strict=True):
        for step, variant in zip(steps, everyone, strict=True):
            variant.prepare(step)
            step.run()
            if variant is not reference:
                results[variant.name].drift[step.key] = _relative(step.batches, steps[0].batches)
        if steps[0].key.startswith(reference.spec.text_prefix):
            last = list(steps)
    # The sweeps have put `hidden` into the batches that left the last text layer.
    counts = _count(reference, [step.batches for step in last])
    tokens = counts[0].seen
    for agreement, count in zip(results.values(), counts[1:], strict=True):
        agreement.kl = float((count.cross / counts[0].total - counts[0].log_total + count.log_total).mean())
        agreement.top1 = float((count.arg == counts[0].arg).float().mean())
        agreement.perplexity = math.exp(float(count.loss[tokens].mean()))
    return math.exp(float(counts[0].loss[tokens].mean())), results


def sensitivities(
    reference: Variant, quantized: Checkpoint, sites: Sequence[Site], rows: Sequence[Sequence[int]]
) -> list[Sensitivity]:
    """Each site's own perturbation, most harmful first, with the weights of the checkpoint `quantized`."""
    found = []
    for step in sweep(reference.spec, reference.tensors, batches_of(rows)):
        inputs = [dict(values) for values in step.batches]
        step.run()
        for site in (site for site in sites if site.block == step.key):
            with _replaced(step, site, quantized):
                outputs = [run_block(step.block, step.module, values) for values in inputs]
            for values, batch in zip(outputs, inputs, strict=True):
                values["input_ids"], values["n_tokens"] = batch["input_ids"], batch["n_tokens"]
            sizes = [quantized[f"{m}.weight"].nbytes - quantized[f"{m}.weight_scale_inv"].nbytes for m in site.modules]
            found.append(Sensitivity(site.modules, _relative(outputs, step.batches), sum(sizes)))
    return sorted(found, key=lambda s: -s.perturbation)


def keep_for(budget: float, ranking: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The sites to keep in BF16, most relief per byte first, until `budget` of the summed perturbation is left.

    Errors of different sites are taken as independent, so that their energies, and to first order their parts of
    the KL divergence, add up.
    """
    left = total = sum(s.perturbation for s in ranking)
    kept = []
    for sensitivity in sorted(ranking, key=lambda s: -s.perturbation / s.extra_bytes):
        if left <= budget * total:
            break
        kept.append(sensitivity)
        left -= sensitivity.perturbation
    return kept


def dequantized(tensors: Checkpoint, module: str) -> Tensor:
    """Float32 weight of a quantized module, by plain repetition of its scales."""
    weight = torch.from_numpy(np.asarray(tensors.read(f"{module}.weight")).astype(np.float32))
    scale = torch.from_numpy(np.asarray(tensors.read(f"{module}.weight_scale_inv")).astype(np.float32))
    return weight * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)


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

    @property
    def log_total(self) -> Tensor:
        return self.peak + self.total.log()

    @property
    def loss(self) -> Tensor:
        return self.log_total - self.aim


def _count(reference: Variant, batches: Sequence[Sequence[Values]]) -> list[_Counter]:
    """Counters of the reference and of each variant, over the vocabulary in pieces."""
    head = graphs_of(reference.spec, torch.float32, mtp=False)[0].blocks[-1]
    table = reference.tensors.read(head.tensor_name("lm_head.weight"))
    hidden = [torch.cat([values["hidden"][real_tokens(values)] for values in own]) for own in batches]
    targets = torch.cat([_targets(values) for values in batches[0]])
    counters = [_Counter(targets) for _ in hidden]
    for begin in range(0, table.shape[0], VOCAB_ROWS):
        weight = torch.from_numpy(np.asarray(table[begin : begin + VOCAB_ROWS]).astype(np.float32))
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


def _relative(own: Sequence[Values], reference: Sequence[Values]) -> float:
    error = energy = 0.0
    for values, expected in zip(own, reference, strict=True):
        real = real_tokens(expected)
        error += float((values["h"] - expected["h"])[real].square().sum())
        energy += float(expected["h"][real].square().sum())
    return error / energy


@contextmanager
def _replaced(step: Step, site: Site, quantized: Checkpoint) -> Iterator[None]:
    """The step's module with the quantized weights of one site."""
    kept: list[tuple[Any, nn.Parameter]] = []
    for name in site.modules:
        linear = step.module.get_submodule(name.removeprefix(f"{step.key}."))
        kept.append((linear, linear.weight))
        linear.weight = nn.Parameter(dequantized(quantized, name), requires_grad=False)
    yield
    for linear, weight in kept:
        linear.weight = weight
