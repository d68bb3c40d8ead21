"""The training curve as a picture for the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

LOSSES = {"loss": "next token (trunk)", "mtp_loss": "token after next (MTP head)"}


def draw(log: Path, picture: Path, losses: Mapping[str, str] = LOSSES) -> None:
    """Draws log.jsonl's losses over the steps, on a logarithmic axis.

    Args:
        losses: labels by the names of a line's fields.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.6), dpi=110, layout="tight")
    axes = figure.subplots()
    for name, label in losses.items():
        axes.semilogy(steps, [line[name] for line in lines], label=label, linewidth=0.9)
    axes.set(xlabel="step", ylabel="cross-entropy, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture)
