"""Models to compare: a checkpoint as it is, or one whose linears are quantized as its layers come by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from deltart.calib.choose import take
from deltart.calib.formats import Format
from deltart.calib.forward import LayerPass
from deltart.calib.quantize import LADDER, Method, lower_sources
from deltart.calib.scales import one_thread, search_scale
from deltart.calib.selection import Selection
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import ModelSpec
from deltart.export.weights import load_tensor


@dataclass(frozen=True)
class Variant:
    """A model to compare. `prepare` may replace linears of a layer before it runs."""

    name: str
    spec: ModelSpec
    tensors: Checkpoint
    prepare: Callable[[LayerPass], None] = lambda step: None


def lower_variants(
    original: Variant,
    selection: Selection,
    method: Method,
    form: Format,
    importance: Callable[[str], dict[str, torch.Tensor]],
    picks: Callable[[str], dict[str, str]],
) -> list[Variant]:
    """What the methods below `method` would have written, with the same text.

    Args:
        importance: second moments [K] by the first module that reads them, of a layer by its name.
        picks: the candidates that each method takes, of a module (see choose.Choice).
    """

    def variant(name: Method) -> Variant:
        def prepare(step: LayerPass) -> None:
            own = importance(step.key)
            for site in (site for site in selection.sites if site.block == step.key):
                for module in site.modules:
                    weight = load_tensor(original.tensors, f"{module}.weight")
                    with one_thread():
                        scale = search_scale(weight, own[site.modules[0]], grid=form.grid) if name == "mse" else None
                        taken = take(weight, lower_sources(scale, form.grid), picks(module)[name])
                        put(step, module, form.linear(taken))

        return Variant(name, original.spec, original.tensors, prepare)

    return [variant(name) for name in reversed(LADDER[: LADDER.index(method)])]


def put(step: LayerPass, module: str, linear: nn.Module) -> nn.Module:
    """Replace a linear of the layer, by its full name. Returns the old one."""
    parent, _, leaf = module.removeprefix(f"{step.key}.").rpartition(".")
    owner = step.module.get_submodule(parent)
    old: nn.Module = getattr(owner, leaf)
    setattr(owner, leaf, linear)
    return old
