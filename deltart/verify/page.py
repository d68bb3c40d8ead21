"""A verification report as one HTML page: plots of error by layer, and the table behind them. No scripts, no files."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from deltart.html_style import COLORS, STYLE
from deltart.verify.compare import Difference, VerifyReport
from deltart.verify.shown import MEDIA

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 340, 56, 16, 40, 30  # pixels: size and margins
LABELS = 20  # at most, along the layers


def page(report: VerifyReport) -> str:
    """The page."""
    verdict = "passed" if report.passed else "FAILED"
    skipped = "".join(
        f"<li><b>{html.escape(n)}</b> did not run: {html.escape(r)}</li>" for n, r in report.skipped.items()
    )
    greedy = "".join(
        f"<li>{html.escape(n)}: most probable tokens agree at {s:.1%} of positions</li>"
        for n, s in report.greedy.items()
    )
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in report.shown)
    plots = "".join(
        f"<h2>Relative RMS error by layer{title}</h2>{_plot(part, lambda d: d.relative_rms, report.tolerances)}"
        f"<h2>Largest error by layer{title}</h2>{_plot(part, lambda d: d.max_abs, {})}"
        for title, part in _parts(report)
    )
    replies = "".join(
        f"<li{'' if a.passed else ' class=bad'}>{html.escape(a.runner)}: {a}</li>" for a in report.replies
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>deltart verify: {verdict}</title><style>{STYLE}</style>"
        f"<h1>Verification {verdict}</h1><p>{html.escape(report.artifact)}: {report.tokens} tokens, "
        f"against {html.escape(report.reference)}.</p><ul>{shown}{greedy}{replies}{skipped}</ul>{plots}"
        f"<h2>Figures</h2>{_table(report)}</html>"
    )


def _parts(report: VerifyReport) -> Iterator[tuple[str, VerifyReport]]:
    """The report of the text alone, and of each medium's tower and prompt; with words for a title."""
    for medium in (None, *MEDIA):
        mine = [d for d in report.differences if _medium(d.point) == medium]
        if mine or medium is None:
            yield f", {medium}" if medium else "", replace(report, differences=mine)


def _medium(point: str) -> str | None:
    head = point.partition(".")[0]
    return head if head in MEDIA else None


def compared_points(report: VerifyReport) -> list[str]:
    """Every point of the report once, in the order of the model as far as one runner shows it."""
    by_runner = [[d.point for d in report.differences if d.runner == runner] for runner in _runners(report)]
    longest = max(by_runner, key=len, default=[])
    return list(dict.fromkeys([*longest, *(d.point for d in report.differences)]))


def _runners(report: VerifyReport) -> list[str]:
    return list(dict.fromkeys(d.runner for d in report.differences))


def _plot(report: VerifyReport, value: Callable[[Difference], float], limits: Mapping[str, float]) -> str:
    """One figure of the differences over the layers, on a logarithmic scale; `limits` by runner are dashed.

    A point that is exact has no place on it.
    """
    points, runners = compared_points(report), _runners(report)
    if not points:
        return "<p>Nothing was compared.</p>"
    at = _abscissas(points)
    drawn = [value(d) for d in report.differences if math.isfinite(value(d))] + [limits[r] for r in runners if limits]
    levels = [math.log10(v) for v in drawn if v > 0] or [0.0]
    low, high = math.floor(min(levels)), math.ceil(max(levels) + 1e-9)

    def y(error: float) -> float:
        level = math.log10(error) if math.isfinite(error) else high
        return HEIGHT - BOTTOM - (level - low) * (HEIGHT - TOP - BOTTOM) / max(high - low, 1)

    parts = [_grid(y(10.0**level), f"1e{level}") for level in range(low, high + 1)]
    parts += [_label(at[points[i]], _short(points[i])) for i in _labelled(points)]
    for position, (runner, color) in enumerate(zip(runners, COLORS, strict=False)):
        mine = [d for d in report.differences if d.runner == runner and value(d) > 0]
        parts.append(_line([(at[d.point], y(value(d)), d) for d in mine], color, value))
        parts.append(_legend(position, color, runner))
        if limits:
            limit = y(limits[runner])
            parts.append(f'<path d="M{LEFT} {limit:.1f}H{WIDTH - RIGHT}" stroke="{color}" stroke-dasharray="6 4"/>')
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="error by layer"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def _short(point: str) -> str:
    inner = point.removeprefix(f"{_medium(point)}.").removesuffix(".h")
    return inner.removeprefix("layers.").removeprefix("blocks.")


def _is_layer(point: str) -> bool:
    return point.removeprefix(f"{_medium(point)}.").startswith(("layers.", "blocks."))


def _abscissas(points: Sequence[str]) -> dict[str, float]:
    """Where each point is drawn: layers one step apart, what is no layer with room for its name."""
    gap = max(len(points) / 12, 1.0)
    steps = [1.0 if _is_layer(point) else gap for point in points]
    places = [sum(steps[:i]) + step / 2 for i, step in enumerate(steps)]
    return {p: LEFT + place * (WIDTH - LEFT - RIGHT) / sum(steps) for p, place in zip(points, places, strict=True)}


def _labelled(points: Sequence[str]) -> list[int]:
    """Indices of the points to name: whatever is no layer, and every so many layers."""
    layers = [i for i, point in enumerate(points) if _is_layer(point)]
    step = max(-(-len(layers) // LABELS), 1)
    return [i for i in range(len(points)) if i not in layers] + layers[step - 1 :: step][: LABELS - 1] + layers[:1]


def _grid(at: float, text: str) -> str:
    return (
        f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" font-size="12">{text}</text>'
    )


def _label(at: float, text: str) -> str:
    anchor = f'x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
    return f'<text {anchor} font-size="12">{html.escape(text)}</text>'


def _legend(position: int, color: str, name: str) -> str:
    left = LEFT + 190 * position
    return (
        f'<rect x="{left}" y="8" width="14" height="14" fill="{color}"/>'
        f'<text x="{left + 20}" y="20" font-size="13">{html.escape(name)}</text>'
    )


def _line(points: Sequence[tuple[float, float, Difference]], color: str, value: Callable[[Difference], float]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if d.passed else 5}" fill="{color if d.passed else "#b00"}">'
        f"<title>{html.escape(f'{_short(d.point)}, {d.runner}: {value(d):.2e}')}</title></circle>"
        for x, y, d in points
    )
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>{marks}'


def _table(report: VerifyReport) -> str:
    runners = _runners(report)
    by_place = {(d.point, d.runner): d for d in report.differences}
    points = compared_points(report)
    head = "".join(f"<th>{html.escape(r)}: relative RMS</th><th>max</th>" for r in runners)
    against = {d.point: "" if d.against == report.reference else f" (against {d.against})" for d in report.differences}
    rows = "".join(
        f"<tr><td>{html.escape(p + against[p])}</td>{''.join(_cells(by_place.get((p, r))) for r in runners)}</tr>"
        for p in points
    )
    return f"<table><tr><th>point</th>{head}</tr>{rows}</table>"


def _cells(found: Difference | None) -> str:
    if found is None:
        return "<td>-</td><td>-</td>"
    bad = "" if found.passed else ' class="bad"'
    return f"<td{bad}>{found.relative_rms:.2e}</td><td>{found.max_abs:.2e}</td>"
