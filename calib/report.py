"""The calibration report: report.json for machines, report.html with plots for people."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltart.calib.evaluate import BUDGETS, Agreement, Sensitivity, keep_for
from deltart.calib.figures import WeightFigures
from deltart.errors import MissingDependencyError

JSON_NAME, HTML_NAME = "report.json", "report.html"
STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto} table{border-collapse:collapse}
td,th{padding:.1em .8em;text-align:right} td:first-child,th:first-child{text-align:left}
tr:nth-child(even){background:#f4f4f4}"""


@dataclass
class Report:
    """What was quantized and how well.

    Attributes:
        kept: modules that stay in BF16 although the vendor would quantize them, and why.
        weights: figures by module.
        files: SHA-256 of each weight file.
        data: SHA-256 of the calibration text, None without text; the rest is empty then.
        tokens: how many tokens were calibrated on and held out.
        perplexity: of the original on held-out text.
        agreement: of each variant with the original, by name.
        ranking: sites by the harm their quantization alone does.
    """

    method: str
    kept: dict[str, str]
    weights: dict[str, WeightFigures]
    files: dict[str, str]
    data: str | None
    tokens: tuple[int, int]
    perplexity: float | None = None
    agreement: dict[str, Agreement] = field(default_factory=dict)
    ranking: list[Sensitivity] = field(default_factory=list)


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.html. Raises MissingDependencyError without matplotlib."""
    (folder / JSON_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    (folder / HTML_NAME).write_text(_page(report), encoding="utf-8")


def _page(report: Report) -> str:
    parts = [f"<h1>FP8 calibration by {html.escape(report.method)}</h1>", _summary(report), _plots(report)]
    if report.ranking:
        parts += ["<h2>What to keep in BF16</h2>", _budgets(report), _ranking(report.ranking)]
    parts += ["<h2>Weights</h2>", _weights(report)]
    if report.kept:
        parts += ["<h2>Left as they are</h2>", _table(["module", "why"], report.kept.items())]
    parts += ["<h2>Files</h2>", _table(["file", "SHA-256"], report.files.items())]
    return f"<!doctype html><meta charset=utf-8><title>FP8 calibration</title><style>{STYLE}</style>{''.join(parts)}\n"


def _summary(report: Report) -> str:
    if report.data is None:
        return "<p>No text was given, so only the weights themselves were measured.</p>"
    text = f"<p>Calibrated on {report.tokens[0]} tokens; the rest of the text, {report.tokens[1]} tokens, is held out."
    text += " The model is compared with the original on held-out text.</p>"
    rows: list[Sequence[Any]] = [("original", "", "", _number(report.perplexity))]
    for name, a in report.agreement.items():
        rows.append((name, _number(a.kl), f"{a.top1:.2%}", _number(a.perplexity)))
    return text + _table(["weights", "KL to original, nats", "same top token", "perplexity"], rows)


def _budgets(report: Report) -> str:
    kl, rows = report.agreement[report.method].kl, []
    for budget in BUDGETS:
        kept = keep_for(budget, report.ranking)
        size = sum(s.extra_bytes for s in kept)
        rows.append((f"{budget:.0%}", _number(kl * budget), f"{size / 1e6:.1f} MB", "; ".join(_site(s) for s in kept)))
    note = "<p>An estimate: the harm of different sites is taken to add up.</p>"
    return note + _table(["share of the loss", "KL", "extra size", "keep in BF16"], rows)


def _ranking(ranking: Sequence[Sensitivity]) -> str:
    rows = ((_site(s), _number(s.perturbation), f"{s.extra_bytes / 1e6:.2f} MB") for s in ranking)
    return _table(["quantized alone", "relative squared change of its layer's output", "BF16 would add"], rows)


def _weights(report: Report) -> str:
    heads = ["module", "SQNR, dB", "peak / RMS", "outliers", "clipped", "output error", "with absmax", "ratio"]
    rows = []
    for module, w in report.weights.items():
        ratio = w.output_error / w.absmax_output_error if w.output_error and w.absmax_output_error else None
        cells = [module, _number(w.sqnr_db), _number(w.peak), f"{w.outliers:.2e}", f"{w.saturated:.2e}"]
        rows.append([*cells, *map(_number, (w.output_error, w.absmax_output_error, ratio))])
    return _table(heads, rows)


def _plots(report: Report) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "matplotlib is not installed", "the plots of report.html need it", "pip install matplotlib"
        ) from None
    figure = Figure(figsize=(11, 3.6 * (2 if report.agreement else 1)), layout="constrained")
    axes = figure.subplots(2 if report.agreement else 1, 1, squeeze=False)[:, 0]
    for leaf in dict.fromkeys(module.rpartition(".")[2] for module in report.weights):
        own = [(m, w) for m, w in report.weights.items() if m.endswith(f".{leaf}") and w.sqnr_db is not None]
        axes[0].plot([_layer(m) for m, _ in own], [w.sqnr_db for _, w in own], ".-", label=leaf, linewidth=0.8)
    axes[0].set(ylabel="SQNR of the weight, dB")
    for name, agreement in report.agreement.items():
        axes[1].semilogy(list(map(_layer, agreement.drift)), list(agreement.drift.values()), ".-", label=name)
        axes[1].set(ylabel="|h - h_ref|^2 / |h_ref|^2 after the layer")
    for axis in axes:
        axis.tick_params(axis="x", rotation=90, labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=4)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return f'<p><img alt="by depth" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"></p>'


def _layer(module: str) -> str:
    """ "model.layers.3.mlp.up_proj" -> "3", "mtp.layers.0" -> "mtp 0"."""
    start, _, rest = module.partition("layers.")
    return f"{'mtp ' if start.startswith('mtp') else ''}{rest.partition('.')[0]}"


def _site(sensitivity: Sensitivity) -> str:
    first, *others = sensitivity.modules
    return ", ".join([first, *(module.rpartition(".")[2] for module in others)])


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
