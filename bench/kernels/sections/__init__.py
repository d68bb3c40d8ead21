"""What is measured: each section checks its cases against float64 on fresh inputs, then times them and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.kernels import token
from bench.kernels.run import Run
from bench.kernels.sections import (
    ceilings,
    fp8_linear,
    fp8_projections,
    gated_attention,
    gated_delta_rule,
    joined,
    lm_head,
    sampler,
    simple,
)
from bench.kernels.table import Row

SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "ceilings": ceilings.ceilings,
    "decode": gated_delta_rule.decode,
    "speculate": gated_delta_rule.speculate,
    "prefill": gated_delta_rule.prefill,
    "conv": simple.conv,
    "linear": fp8_linear.linear,
    "attention": gated_attention.attention,
    "norm": simple.norm,
    "residual": simple.residual,
    "head": lm_head.head,
    "sampler": sampler.draw,
    "projections": fp8_projections.projections,
    "rope": simple.rope,
    "joined": joined.joined,  # beside the rows of the others
    "token": token.token,  # sums over the rows of the others
}
RIVALRIES = ("decode", "prefill", "conv", "linear", "attention")  # where others' kernels are timed beside ours
