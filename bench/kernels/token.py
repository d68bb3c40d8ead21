"""What the kernels of one decoded 27B token take together, from the rows of the other sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bench.kernels.run import Run
from bench.kernels.table import Row

# (section, start of the case): calls per token. 48 GDN layers, 16 attention layers, 64 MLPs, one slot.
ONE_BY_ONE = {
    ("linear", "in_proj_qkv M=1 decode"): 48,
    ("linear", "in_proj_z M=1 decode"): 48,
    ("linear", "out_proj M=1 decode"): 48,
    ("linear", "q_proj M=1 decode"): 16,
    ("linear", "k_proj M=1 decode"): 32,
    ("linear", "o_proj M=1 decode"): 16,
    ("linear", "gate_proj M=1 gate_up"): 64,
    ("linear", "down_proj M=1 decode"): 64,
}
LINEARS = {  # as the engine runs them
    ("projections", "delta_net M=1"): 48,
    ("projections", "attention M=1"): 16,
    ("linear", "out_proj M=1 decode"): 48,
    ("linear", "o_proj M=1 decode"): 16,
    ("linear", "gate_proj M=1 gate_up"): 64,
    ("linear", "down_proj M=1 decode"): 64,
}
LAYERS = {
    ("joined", "conv, delta rule, norm B=1 T=1"): 48,
    ("head", "M=1 bf16 of 248320"): 1,
    ("sampler", "thinking"): 1,
}
FP8_HEAD = ("head", "M=1 e4m3 of 248320")
ATTENTION = 16
PASTS = (1024, 32768)
SMALL = {  # the dry run's names of the same kernels
    ("projections", "attention M=1"): 1,
    ("linear", "small M=1 decode"): 2,
    ("linear", "small M=1 gate_up"): 1,
    ("joined", "conv, delta rule, norm B=2 T=1"): 1,
    ("joined", "rope, attention B=2 T=1 past=100"): 1,
    ("head", "M=1 bf16"): 1,
    ("sampler", "thinking"): 1,
}
BOUND = 123  # token/s of an H100 by the bytes that a token reads at a short context
NOT_COUNTED = "not counted: the embedding, the layers' own norms, launches and gaps"


def together(run: Run, calls: Mapping[tuple[str, str], int], case: str) -> Row:
    """A row with the sum over `calls`, or with a note on what was not measured."""
    row, missing = Row("token", case), []
    total = 0.0
    for (section, start), count in calls.items():
        found = [r.us for r in run.rows if r.section == section and f"{r.case} ".startswith(f"{start} ") and r.us]
        total += count * found[0] if found else 0.0
        missing += [] if found else [f"{section} {start}"]
    if missing:
        row.notes.append(f"not measured: {', '.join(missing)}")
        return row
    row.us = total
    row.notes += [f"{1e6 / total:.0f} token/s of at most {BOUND}", NOT_COUNTED]
    return row


def token(run: Run) -> Iterator[Row]:
    """The linears alone, then everything at two lengths of the context."""
    if not run.timed:
        return
    if run.small:
        yield together(run, SMALL, "dry run")
        return
    yield together(run, ONE_BY_ONE, "linears one by one, without in_proj_a and in_proj_b")
    yield together(run, LINEARS, "linears alone")
    for past in PASTS:
        everything = LINEARS | LAYERS | {("joined", f"rope, attention B=1 T=1 past={past}"): ATTENTION}
        yield together(run, everything, f"past={past}")
        in_fp8 = {key: count for key, count in everything.items() if key[0] != "head"} | {FP8_HEAD: 1}
        yield together(run, in_fp8, f"past={past}, FP8 head")
