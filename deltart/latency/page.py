"""Measurements as one HTML page: latency against context, a token beside its floor, history. No scripts, no files."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltart.html_style import COLORS, STYLE
from deltart.latency.report import Report
from deltart.latency.setting import Setting

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 320, 64, 16, 36, 34  # pixels: size and margins
BAR = 26

Line = Sequence[tuple[float, float]]


def page(report: Report) -> str:
    """The page of a report."""
    cases = report.setting.cases
    gaps = {
        f"{rows} sequences" if rows > 1 else "one sequence": [
            (float(case["context"]), report.seconds[name].median * 1e3)
            for name, case in cases.items()
            if case["do"] == "decode" and case["rows"] == rows
        ]
        for rows in sorted({case["rows"] for case in cases.values() if case["do"] == "decode"})
    }
    first = {
        label: [
            (float(case["tokens"]), report.seconds[name].median * 1e3)
            for name, case in cases.items()
            if case["do"] == "prompt" and case.get("fresh", True) == fresh
        ]
        for label, fresh in (("nothing kept", True), ("prefix kept", False))
    }
    setting = report.setting
    about = f"{setting.device}, {setting.cores} cores, {setting.threads or 'default'} threads, {setting.system}"
    body = [
        f"<h1>{html.escape(report.subject.artifact)}</h1><p>{html.escape(about)}</p>",
        "<h2>Milliseconds between tokens, by context</h2>", plot(gaps),
        "<h2>Milliseconds to the first token, by prompt</h2>", plot(first),
        "<h2>A token's time beside its floor</h2>", _waterfall(report),
        "<h2>Figures</h2>", _table(report),
    ]  # fmt: skip
    return _whole("deltart bench", body)


def history_page(entries: Sequence[Mapping[str, Any]], setting: Setting) -> str:
    """Ratios of minima against the baselines, comparison by comparison, oldest first."""
    metrics = sorted({metric for entry in entries for metric in entry["metrics"]})
    lines = {
        metric: [
            (float(i + 1), float(entry["metrics"][metric]["ratios"]["minimum"]))
            for i, entry in enumerate(entries)
            if metric in entry["metrics"]
        ]
        for metric in metrics
    }
    rows = [
        f"<tr><td>{html.escape(entry['taken'])}</td><td>{html.escape(str(entry['against']))}</td>"
        + "".join(_outcome(entry["metrics"].get(metric)) for metric in metrics) + "</tr>"
        for entry in reversed(entries)
    ]  # fmt: skip
    head = "".join(f"<th>{html.escape(metric)}</th>" for metric in metrics)
    about = f"{setting.device}, {setting.threads or 'default'} threads: minima, new / base"
    return _whole("deltart bench: history", [
        f"<h1>History</h1><p>{html.escape(about)}</p>",
        plot(lines), f"<table><tr><th>taken</th><th>against</th>{head}</tr>{''.join(rows)}</table>",
    ])  # fmt: skip


def plot(lines: Mapping[str, Line]) -> str:
    """Lines over a logarithmic abscissa, from zero up; a line of one point is a mark."""
    points = [point for found in lines.values() for point in found]
    if not points:
        return "<p>Nothing was measured.</p>"
    left, right = (math.log2(f(x for x, _ in points)) for f in (min, max))
    top = max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - left) / (right - left) if right > left else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT - 20) + 10, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = place(points[0][0], share * top)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{share * top:.3g}", "end"))
    parts += [_text(place(x, 0)[0], HEIGHT - BOTTOM + 18, f"{x:g}", "middle") for x in sorted({x for x, _ in points})]
    for i, (name, found) in enumerate((n, f) for n, f in lines.items() if f):
        color, placed = COLORS[i % len(COLORS)], [place(*point) for point in sorted(found)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{html.escape(name)}: {v:.4g}</title>'
            "</circle>"
            for (x, y), (_, v) in zip(placed, sorted(found), strict=True)
        ]
        parts.append(f'<rect x="{LEFT + 220 * i}" y="8" width="14" height="14" fill="{color}"/>')
        parts.append(_text(LEFT + 220 * i + 20, 20, name, "start"))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img">{"".join(parts)}</svg>'


def _waterfall(report: Report) -> str:
    """Where a step's time goes, one kind of block after the other; above it, what its bytes take at copy bandwidth."""
    if not report.traffic or report.profile is None:
        return "<p>Not measured on this device.</p>"
    step, floor = report.traffic["seconds"], report.traffic["seconds_at_copy"]
    bars, at = [("bytes at copy bandwidth", 0.0, floor)], 0.0
    for kind, seconds in report.profile.seconds.items():
        bars.append((kind, at, seconds))
        at += seconds
    bars.append(("measured between tokens", 0.0, step))
    scale = (WIDTH - 320) / max(at, step, floor)
    parts = []
    for i, (name, start, seconds) in enumerate(bars):
        y, color = i * BAR, COLORS[1 if i in (0, len(bars) - 1) else 0]
        parts.append(_text(200, y + 17, name, "end"))
        parts.append(
            f'<rect x="{210 + start * scale:.1f}" y="{y + 4}" width="{max(seconds * scale, 1):.1f}" height="{BAR - 8}" '
            f'fill="{color}"/>'
        )
        parts.append(_text(214 + (start + seconds) * scale, y + 17, f"{seconds * 1e3:.3f} ms", "start"))
    note = "<p>Kinds of blocks are from a run with the profiler on, which takes longer than the measured one.</p>"
    return f'<svg viewBox="0 0 {WIDTH} {BAR * len(bars)}" width="100%" role="img">{"".join(parts)}</svg>{note}'


def _table(report: Report) -> str:
    names = ("metric", "median ms", "quartiles", "least", "p90", "p99", "A/A noise")
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    rows = (
        f"<tr><td>{html.escape(name)}</td><td>{_ms(s.median)}</td><td>{_ms(s.low)} to {_ms(s.high)}</td>"
        f"<td>{_ms(s.least)}</td><td>{_ms(s.p90)}</td><td>{_ms(s.p99)}</td><td>{report.noise[name]:.1%}</td></tr>"
        for name, s in report.seconds.items()
    )
    return f"<table>{head}{''.join(rows)}</table>"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


def _outcome(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "<td>-</td>"
    bad = ' class="bad"' if found["outcome"] == "slower" else ""
    return f"<td{bad}>{found['ratios']['minimum']:.3f} {html.escape(found['outcome'])}</td>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12">{html.escape(text)}</text>'


def _whole(title: str, body: Iterable[str]) -> str:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"{head}{''.join(body)}</html>\n"
