"""Body of the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.plugins.bodies import Bodies


def portable(attributes: Mapping[str, Any]) -> str:
    """One product."""
    return """
LmHead (x, weight) => (logits) {
  W = Cast <to = 1> (weight)
  W_t = Transpose <perm = [1, 0]> (W)
  logits = MatMul (x, W_t)
}
"""


BODIES = {"LmHead": Bodies(portable)}
