"""Which sites' quantization costs most, and which to keep in BF16 for a given loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deltart.calib.evaluate import relative_change
from deltart.calib.forward import Step, batches_of, run_block, sweep
from deltart.calib.layout import Site
from deltart.calib.progress import Progress
from deltart.calib.scales import Quantized
from deltart.calib.variants import Variant, put
from deltart.export.checkpoint import Checkpoint
from deltart.export.weights import load_tensor


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one site alone does to its layer's output, relative and squared, and what keeping it costs."""

    modules: tuple[str, ...]
    perturbation: float
    extra_bytes: int


@dataclass(frozen=True)
class Keep:
    """Sites to keep in BF16 so that about `kl` nats are left of the loss."""

    kl: float
    extra_bytes: int
    modules: list[str]


def sensitivities(
    original: Variant, quantized: Checkpoint, sites: Sequence[Site], rows: Sequence[Sequence[int]], progress: Progress
) -> list[Sensitivity]:
    """Each site's own perturbation, most harmful first, with the weights of the checkpoint `quantized`."""
    found = []
    for step in sweep(original.spec, original.tensors, batches_of(rows)):
        inputs = [dict(values) for values in step.batches]
        step.run()
        for site in (site for site in sites if site.block == step.key):
            with _replaced(step, site, quantized):
                outputs = [run_block(step.block, step.module, values)["h"] for values in inputs]
            sizes = [quantized[f"{m}.weight"].nbytes - quantized[f"{m}.weight_scale_inv"].nbytes for m in site.modules]
            found.append(Sensitivity(site.modules, relative_change(outputs, step.batches), sum(sizes)))
        progress.advance(1, step.key)
        del step
    return sorted(found, key=lambda s: -s.perturbation)


def keep_for(kl: float, budget: float, ranking: Sequence[Sensitivity]) -> Keep:
    """The sites to keep in BF16, most relief per byte first, until `budget` of the loss `kl` is left, in nats.

    Errors of different sites are taken as independent, so that their energies, and to first order their parts of
    the KL divergence, add up. The MTP head is left out: no token that the text model gives depends on it.
    """
    text = [s for s in ranking if not s.modules[0].startswith("mtp.")]
    left = total = sum(s.perturbation for s in text)
    kept: list[Sensitivity] = []
    for sensitivity in sorted(text, key=lambda s: -s.perturbation / s.extra_bytes):
        if left * kl <= budget * total:
            break
        kept.append(sensitivity)
        left -= sensitivity.perturbation
    modules = [module for sensitivity in kept for module in sensitivity.modules]
    return Keep(kl * max(left, 0.0) / total if total else 0.0, sum(s.extra_bytes for s in kept), modules)


@contextmanager
def _replaced(step: Step, site: Site, quantized: Checkpoint) -> Iterator[None]:
    """The step's module with the quantized weights of one site."""
    kept = {}
    for name in site.modules:
        values = load_tensor(quantized, f"{name}.weight"), load_tensor(quantized, f"{name}.weight_scale_inv")
        kept[name] = put(step, name, Quantized(*values))
    yield
    for name, linear in kept.items():
        parent, _, leaf = name.removeprefix(f"{step.key}.").rpartition(".")
        setattr(step.module.get_submodule(parent), leaf, linear)
