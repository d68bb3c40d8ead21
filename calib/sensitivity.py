"""Which sites' quantization costs most, and which to keep in BF16 for a given loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deltart.calib.evaluate import divergences, relative_change
from deltart.calib.formats import Format
from deltart.calib.forward import LayerPass, Values, batches_of, normalise, run_block, sweep
from deltart.calib.memory import release
from deltart.calib.progress import Progress
from deltart.calib.selection import Site
from deltart.calib.variants import Variant, put
from deltart.export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one site alone does, and what keeping it in BF16 costs.

    Attributes:
        perturbation: relative squared change of its layer's output.
        kl: KL divergence from the original in nats. 0 in the MTP head, on which only drafts depend.
        extra_bytes: what BF16 would add.
    """

    modules: tuple[str, ...]
    perturbation: float
    kl: float
    extra_bytes: int


@dataclass(frozen=True)
class Keep:
    """Sites to keep in BF16 so that about `kl` nats are left of the loss."""

    kl: float
    extra_bytes: int
    modules: list[str]


def sensitivities(
    original: Variant,
    quantized: Checkpoint,
    form: Format,
    sites: Sequence[Site],
    rows: Sequence[Sequence[int]],
    progress: Progress,
) -> list[Sensitivity]:
    """Each site's harm with the weights of the checkpoint `quantized`, most harmful first.

    The activations that follow from each site's quantization go through the layers above it: the work grows with
    the square of the depth, so `rows` should be few.
    """
    changes: dict[Site, float] = {}
    streams: dict[Site, list[Values]] = {}
    final: list[Values] = []
    for step in sweep(original.spec, original.tensors, batches_of(rows)):
        inputs = [dict(values) for values in step.batches]
        step.run()
        in_text = not step.key.startswith(original.spec.mtp_prefix)
        if in_text:
            final = step.batches
            for values in (values for stream in streams.values() for values in stream):
                values["h"] = run_block(step.block, step.module, values)["h"]
        for site in (site for site in sites if site.block == step.key):
            with _replaced(step, site, quantized, form):
                outputs = [run_block(step.block, step.module, values)["h"] for values in inputs]
            changes[site] = relative_change(outputs, step.batches)
            if in_text:
                streams[site] = [values | {"h": h} for values, h in zip(inputs, outputs, strict=True)]
        progress.advance(1, step.key)
        del step
        release()
    for stream in streams.values():  # `final` was by the sweep
        normalise(original.spec, original.tensors, stream)
    costs = dict(zip(streams, divergences(original, final, list(streams.values())), strict=True))
    ranking = [
        Sensitivity(
            site.modules, change, max(0.0, costs.get(site, 0.0)), _extra_bytes(site, original.tensors, quantized, form)
        )
        for site, change in changes.items()
    ]
    return sorted(ranking, key=lambda s: (-s.kl, -s.perturbation))


def keep_for(kl: float, budget: float, ranking: Sequence[Sensitivity]) -> Keep:
    """The sites to keep in BF16, most relief per byte first, until `budget` of the loss `kl` is left, in nats.

    The parts of different sites are taken to add up.
    """
    left = total = sum(s.kl for s in ranking)
    kept: list[Sensitivity] = []
    for sensitivity in sorted((s for s in ranking if s.kl > 0), key=lambda s: -s.kl / s.extra_bytes):
        if left * kl <= budget * total:
            break
        kept.append(sensitivity)
        left -= sensitivity.kl
    modules = [module for sensitivity in kept for module in sensitivity.modules]
    return Keep(kl * max(left, 0.0) / total if total else 0.0, sum(s.extra_bytes for s in kept), modules)


def _extra_bytes(site: Site, original: Checkpoint, quantized: Checkpoint, form: Format) -> int:
    stored = sum(quantized[f"{module}.{leaf}"].nbytes for module in site.modules for leaf in form.leaves)
    return sum(2 * math.prod(original[f"{module}.weight"].shape) for module in site.modules) - stored


@contextmanager
def _replaced(step: LayerPass, site: Site, quantized: Checkpoint, form: Format) -> Iterator[None]:
    """The step's module with the quantized weights of one site."""
    kept = {name: put(step, name, form.linear(form.load(quantized, name))) for name in site.modules}
    yield
    for name, linear in kept.items():
        put(step, name, linear)
