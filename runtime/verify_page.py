"""A verification report as one HTML page: a plot of error by layer, and the table behind it. No scripts, no files."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from deltart.runtime.verify import Difference, Report

WIDTH, HEIGHT, MARGIN = 960, 360, 56  # pixels
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
FLOOR = 1e-9  # errors below it are drawn on it
STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1000px;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}.bad{color:#b00;font-weight:bold}"
)


def page(report: Report) -> str:
    """The page."""
    runners = list(dict.fromkeys(d.runner for d in report.differences))
    verdict = "passed" if report.passed else "FAILED"
    skipped = "".join(
        f"<li><b>{html.escape(n)}</b> did not run: {html.escape(r)}</li>" for n, r in report.skipped.items()
    )
    greedy = "".join(
        f"<li>{html.escape(n)}: greedy tokens agree at {s:.1%} of positions</li>" for n, s in report.greedy.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>deltart verify: {verdict}</title><style>{STYLE}</style>"
        f"<h1>Verification {verdict}</h1><p>{html.escape(report.artifact)}: {report.tokens} tokens, "
        f"against {html.escape(report.reference)}.</p><ul>{greedy}{skipped}</ul>"
        f"<h2>Relative RMS error by layer</h2>{_plot(report, runners)}<h2>Figures</h2>{_table(report, runners)}</html>"
    )


def _plot(report: Report, runners: Sequence[str]) -> str:
    points = list(dict.fromkeys(d.point for d in report.differences))
    if not points:
        return "<p>Nothing was compared.</p>"
    levels = [math.log10(max(d.relative_rms, FLOOR)) for d in report.differences if math.isfinite(d.relative_rms)]
    levels += [math.log10(report.tolerances[r]) for r in runners]
    low, high = math.floor(min(levels)), math.ceil(max(levels) + 1e-9)

    def x(index: int) -> float:
        return MARGIN + index * (WIDTH - 2 * MARGIN) / max(len(points) - 1, 1)

    def y(error: float) -> float:
        level = min(math.log10(max(error, FLOOR)), high) if math.isfinite(error) else high
        return HEIGHT - MARGIN - (level - low) * (HEIGHT - 2 * MARGIN) / max(high - low, 1)

    parts = [_grid(y(10.0**level), f"1e{level}") for level in range(low, high + 1)]
    step = max(len(points) // 16, 1)
    parts += [_label(x(i), points[i].removesuffix(".h")) for i in range(0, len(points), step)]
    for runner, color in zip(runners, COLORS, strict=False):
        line = [(x(points.index(d.point)), y(d.relative_rms)) for d in report.differences if d.runner == runner]
        parts.append(_line(line, color, runner, COLORS.index(color)))
        limit = y(report.tolerances[runner])
        parts.append(f'<path d="M{MARGIN} {limit:.1f}H{WIDTH - MARGIN}" stroke="{color}" stroke-dasharray="6 4"/>')
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="error by layer"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def _grid(at: float, text: str) -> str:
    return (
        f'<path d="M{MARGIN} {at:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>'
        f'<text x="{MARGIN - 6}" y="{at + 4:.1f}" text-anchor="end" font-size="12">{text}</text>'
    )


def _label(at: float, text: str) -> str:
    down = HEIGHT - MARGIN + 14
    place = f'transform="translate({at:.1f} {down}) rotate(35)"'
    return f'<text {place} font-size="11">{html.escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], color: str, name: str, position: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    legend = f'<text x="{MARGIN + 10 + 180 * position}" y="20" fill="{color}" font-size="13">{html.escape(name)}</text>'
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>{legend}'


def _table(report: Report, runners: Sequence[str]) -> str:
    by_place = {(d.point, d.runner): d for d in report.differences}
    points = list(dict.fromkeys(d.point for d in report.differences))
    head = "".join(f"<th>{html.escape(r)}: relative RMS</th><th>max</th>" for r in runners)
    rows = "".join(
        f"<tr><td>{html.escape(p)}</td>{''.join(_cells(by_place.get((p, r)), report) for r in runners)}</tr>"
        for p in points
    )
    return f"<table><tr><th>point</th>{head}</tr>{rows}</table>"


def _cells(found: Difference | None, report: Report) -> str:
    if found is None:
        return "<td>-</td><td>-</td>"
    bad = ' class="bad"' if not found.relative_rms <= report.tolerances[found.runner] else ""
    return f"<td{bad}>{found.relative_rms:.2e}</td><td>{found.max_abs:.2e}</td>"
