"""The composite ops as torch callables: a reference body when run, one node when traced.

An op goes by the name of its reference: `ops.gated_delta_rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.torch_op import torch_op, translation

CALLABLES = {spec.reference.__name__: torch_op(spec) for spec in MODEL_OPS}
TRANSLATIONS = dict(translation(spec) for spec in MODEL_OPS)


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in CALLABLES:
        raise AttributeError(f"no op has a reference named '{name}'")
    return CALLABLES[name]
