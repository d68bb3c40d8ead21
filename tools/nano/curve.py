"""The training curve as a picture for the model card."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw(log: Path, picture: Path) -> None:
    """Draws log.jsonl's two losses over the steps, on a logarithmic axis."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.6), dpi=110, layout="tight")
    axes = figure.subplots()
    axes.semilogy(steps, [line["loss"] for line in lines], label="next token (trunk)", linewidth=0.9)
    axes.semilogy(steps, [line["mtp_loss"] for line in lines], label="token after next (MTP head)", linewidth=0.9)
    axes.set(xlabel="step", ylabel="cross-entropy, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture)
