"""What a calibration came to, for machines: report.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deltart.calib.evaluate import Fidelity
from deltart.calib.figures import LayerFigures, WeightFigures
from deltart.calib.sensitivity import Keep, Sensitivity, keep_for
from deltart.calib.sizes import PartSize

NAME = "report.json"
SHARES = (0.75, 0.5, 0.25)  # of the loss


@dataclass
class CalibrationReport:
    """What was quantized and how well.

    Attributes:
        format: what the weights became.
        kept: modules that stay in BF16 although the vendor would quantize them, and why.
        weights: figures by module.
        layers: figures by layer.
        inputs: peak over RMS of what flows in on the calibration text, by the first module that reads it.
        sizes: bytes before and after, by part of the checkpoint.
        files: SHA-256 of each weight file.
        data: SHA-256 of the calibration text, None without text; the rest is empty then.
        tokens: how many tokens each part of the text has.
        budget: the loss asked for, in nats of KL.
        perplexity: of the original on held-out text.
        agreement: of each method with the original, by name, the report's own first.
        ranking: sites by the harm their quantization alone does.
    """

    format: str
    method: str
    kept: dict[str, str]
    weights: dict[str, WeightFigures]
    layers: dict[str, LayerFigures]
    inputs: dict[str, float]
    sizes: dict[str, PartSize]
    files: dict[str, str]
    data: str | None
    tokens: dict[str, int]
    budget: float | None
    perplexity: float | None = None
    agreement: dict[str, Fidelity] = field(default_factory=dict)
    ranking: list[Sensitivity] = field(default_factory=list)

    @property
    def keep(self) -> list[Keep]:
        """What to keep in BF16 for SHARES of the loss, and last for `budget` where there is one."""
        if not self.ranking:
            return []
        kl = self.agreement[self.method].kl
        budgets = [share * kl for share in SHARES] + ([self.budget] if self.budget is not None else [])
        return [keep_for(kl, budget, self.ranking) for budget in budgets]


def write(report: CalibrationReport, folder: Path) -> None:
    """Write report.json."""
    content = asdict(report) | {"keep": [asdict(keep) for keep in report.keep]}
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
