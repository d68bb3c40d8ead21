"""What a calibration came to, for people: report.html with tables and plots."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.calib.figures import WeightFigures
from deltart.calib.quantize import LADDER
from deltart.calib.report import SHARES, CalibrationReport
from deltart.calib.sensitivity import Keep
from deltart.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "report.html"
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0;font-variant-numeric:tabular-nums}
td,th{padding:.15em .8em;text-align:right;vertical-align:top;white-space:nowrap} th{border-bottom:1px solid #888}
td:first-child,th:first-child{text-align:left} tr:nth-child(even){background:#f4f4f4}
.text{text-align:left;white-space:normal;word-break:break-word} td.text{font:85% ui-monospace,monospace}
img{max-width:100%} summary{cursor:pointer;font-size:1.3em;margin:.8em 0} p{max-width:52em}"""
SHOWN = 20  # rows of the ranking outside the fold


class _Text(str):
    """A cell that holds words rather than a number."""


def write(report: CalibrationReport, folder: Path) -> None:
    """Write report.html. Raises MissingDependencyError without matplotlib."""
    (folder / NAME).write_text(_page(report), encoding="utf-8")


def _page(report: CalibrationReport) -> str:
    parts = [
        f"<h1>{html.escape(report.format)} calibration by {html.escape(report.method)}</h1>",
        _sizes(report),
        _summary(report),
        _plots(report),
    ]
    if report.ranking:
        parts += ["<h2>What to keep in BF16</h2>", _keep(report), _ranking(report)]
    parts += ["<h2>Layers</h2>", _layers(report), _fold("Weights", _weights(report))]
    if report.inputs:
        parts.append(_fold("Inputs", _inputs(report)))
    if report.kept:
        rows = ((module, _Text(why)) for module, why in report.kept.items())
        parts += ["<h2>Left as they are</h2>", _table(["module", "why"], rows)]
    parts += ["<h2>Files</h2>", _table(["file", "SHA-256"], ((n, _Text(d)) for n, d in report.files.items()))]
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>deltart calibrate</title>"
    return f"<!doctype html>{head}<style>{STYLE}</style>{''.join(parts)}\n"


def _summary(report: CalibrationReport) -> str:
    if report.data is None:
        return "<p>No text was given, so only the weights themselves were measured.</p>"
    t = report.tokens
    text = (
        f"<p>Fitted to {t['calibration']} tokens; candidates chosen, and output errors of weights measured, on another "
        f"{t['validation']}; the models below compared on {t['held_out']} that neither has seen.</p>"
    )
    rows: list[Sequence[Any]] = [("original", "", "", _number(report.perplexity))]
    for name, a in report.agreement.items():
        rows.append((name, _number(a.kl), f"{a.top1:.2%}", _number(a.perplexity)))
    return text + _table(["weights", "KL to original, nats", "same top token", "perplexity"], rows)


def _sizes(report: CalibrationReport) -> str:
    sizes = report.sizes.values()
    total = ("together", _bytes(sum(s.before for s in sizes)), _bytes(sum(s.after for s in sizes)), "")
    rows = [(part, _bytes(s.before), _bytes(s.after), ", ".join(s.dtypes)) for part, s in report.sizes.items()]
    return _table(["part", "before", "after", "stored as"], [*rows, total])


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _keep(report: CalibrationReport) -> str:
    labels = [f"{share:.0%} of the loss" for share in SHARES] + [f"{report.budget} nats"]
    rows = (
        (label, _number(keep.kl), f"{keep.extra_bytes / 1e6:.1f} MB", _Text(_names(keep)))
        for label, keep in zip(labels, report.keep, strict=False)
    )
    note = "<p>An estimate, most relief per byte first: the harm of different sites is taken to add up. The MTP head "
    note += "is left out, since only drafts depend on it.</p>"
    return note + _table(["budget", "KL left", "extra size", _Text("deltart calibrate --keep")], rows)


def _names(keep: Keep) -> str:
    return " ".join(keep.modules) or "nothing"


def _ranking(report: CalibrationReport) -> str:
    heads = ["quantized alone", "KL, nats", "share", "relative squared change of its layer's output", "BF16 would add"]
    total = sum(s.kl for s in report.ranking) or 1.0
    rows = [
        (
            _site(s.modules),
            _number(s.kl),
            f"{s.kl / total:.1%}",
            _number(s.perturbation),
            f"{s.extra_bytes / 1e6:.2f} MB",
        )
        for s in report.ranking
    ]
    rest = _fold(f"{len(rows) - SHOWN} more", _table(heads, rows[SHOWN:])) if len(rows) > SHOWN else ""
    return f"<h2>Sensitivity</h2>{_table(heads, rows[:SHOWN])}{rest}"


def _layers(report: CalibrationReport) -> str:
    heads = ["layer", "SQNR, dB", "blocks with outliers", "saturated", "underflow", *_drifts(report)]
    rows = []
    for key, f in report.layers.items():
        shares = [f"{share:.2e}" for share in (f.outliers, f.saturated, f.underflow)]
        drifts = [_number(a.drift[key]) for a in report.agreement.values()]
        rows.append([key, _number(f.sqnr_db), *shares, *drifts])
    return _table(heads, rows)


def _drifts(report: CalibrationReport) -> list[str]:
    return [f"drift, {name}" for name in report.agreement]


def _weights(report: CalibrationReport) -> str:
    methods = [name for name in LADDER if any(name in w.output for w in report.weights.values())]
    heads = ["module", "SQNR, dB", "peak / RMS", "outliers", "saturated", "underflow"]
    heads += [f"output error, {name}" for name in methods]
    heads += ["chosen / absmax", *(f"rows by {name}" for name in methods)] if methods else []
    rows = []
    for module, w in report.weights.items():
        cells = [module, _number(w.sqnr_db), _number(w.peak)]
        cells += [f"{share:.2e}" for share in (w.outliers, w.saturated, w.underflow)]
        cells += [_number(w.output.get(name)) for name in methods]
        rows.append(cells + ([_number(_ratio(w)), *_shares(w, report.method, methods)] if methods else []))
    return _table(heads, rows)


def _inputs(report: CalibrationReport) -> str:
    note = "<p>Peak over RMS on the calibration text: what one static scale would have to leave room for.</p>"
    return note + _table(["input of", "peak / RMS"], ((m, _number(peak)) for m, peak in report.inputs.items()))


def _ratio(w: WeightFigures) -> float | None:
    return w.output["chosen"] / w.output["absmax"] if w.output.get("absmax") else None


def _shares(w: WeightFigures, method: str, methods: Sequence[str]) -> list[str]:
    picks = w.picks.get(method, "")
    if not picks:
        return [""] * len(methods)
    return [f"{picks.count(str(number)) / len(picks):.0%}" for number in range(len(methods))]


def _plots(report: CalibrationReport) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "matplotlib is not installed", "the plots of report.html need it", "pip install matplotlib"
        ) from None
    count = 3 if report.agreement else 1
    figure = Figure(figsize=(10, 3 * count), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    _by_kind(axes[0], report, lambda w: w.sqnr_db)
    axes[0].set(ylabel="SQNR of the weight, dB")
    if report.agreement:
        _by_kind(axes[1], report, _ratio)
        axes[1].set(ylabel="output error / absmax", ylim=(0, None))
        for name, agreement in report.agreement.items():
            axes[2].semilogy(list(map(_layer, agreement.drift)), list(agreement.drift.values()), ".-", label=name)
        axes[2].set(ylabel="|h - h_ref|² / |h_ref|² after layer")
        axes[2].legend(fontsize=8)
    for axis in axes:
        axis.tick_params(axis="x", labelsize=8, rotation=90 if len(report.layers) > 40 else 0)
        axis.grid(alpha=0.3)
    axes[-1].set(xlabel="layer")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130, metadata={"Software": None})
    return f'<p><img alt="by depth" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"></p>'


def _by_kind(axis: Axes, report: CalibrationReport, figure: Any) -> None:
    """One line for each kind of linear, over the layers."""
    order = [_layer(key) for key in report.layers]
    axis.plot(order, [math.nan] * len(order))  # fixes the order of the layers
    for kind in dict.fromkeys(map(_kind, report.weights)):
        own = [(_layer(m), figure(w)) for m, w in report.weights.items() if _kind(m) == kind]
        points = [(layer, value) for layer, value in own if value is not None]
        axis.plot([p[0] for p in points], [p[1] for p in points], ".-", label=kind, linewidth=0.8)
    axis.legend(fontsize=7, ncols=5)


def _kind(module: str) -> str:
    """ "model.layers.3.mlp.up_proj" -> "up_proj", "model.layers.3.mlp.experts.up_proj" -> "experts.up_proj"."""
    *_, owner, leaf = module.split(".")
    return f"{owner}.{leaf}" if "expert" in owner else leaf


def _layer(module: str) -> str:
    """ "model.layers.3.mlp.up_proj" -> "3", "mtp.layers.0" -> "mtp 0"."""
    start, _, rest = module.partition("layers.")
    return f"{'mtp ' if start.startswith('mtp') else ''}{rest.partition('.')[0]}"


def _site(modules: Sequence[str]) -> str:
    first, *others = modules
    return ", ".join([first, *(module.rpartition(".")[2] for module in others)])


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(_cell("th", h) for h in heads)
    body = "".join("<tr>" + "".join(_cell("td", value) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(tag: str, value: Any) -> str:
    mark = " class=text" if isinstance(value, _Text) else ""
    return f"<{tag}{mark}>{html.escape(str(value))}</{tag}>"
