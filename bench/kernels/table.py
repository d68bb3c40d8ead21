"""Result rows: as a table for people, as JSON for tools."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One measured case. Errors are relative RMS against float64; peers map a name to its microseconds."""

    section: str
    case: str
    error: float | None = None
    state_error: float | None = None
    us: float | None = None
    spread_us: float | None = None
    gbs: float | None = None
    copy_percent: float | None = None
    tflops: float | None = None
    matmul_percent: float | None = None
    fp8_percent: float | None = None
    peers: dict[str, float] = field(default_factory=dict)
    passed: bool = True
    notes: list[str] = field(default_factory=list)


COLUMNS = [
    ("error", "{:.1e}"),
    ("state_error", "{:.1e}"),
    ("us", "{:.2f}"),
    ("spread_us", "{:.2f}"),
    ("gbs", "{:.0f}"),
    ("copy_percent", "{:.0f}"),
    ("tflops", "{:.0f}"),
    ("matmul_percent", "{:.0f}"),
    ("fp8_percent", "{:.0f}"),
]


def cells(row: Row) -> list[str]:
    """The row's cells, `-` where nothing was measured. Peers show their time and how much faster we are."""
    values = [(pattern, getattr(row, name)) for name, pattern in COLUMNS]
    shown = ["-" if value is None else pattern.format(value) for pattern, value in values]
    peers = [f"{name} {us:.2f}" + (f" ({us / row.us:.2f}x)" if row.us else "") for name, us in row.peers.items()]
    return [row.section, row.case, *shown, "ok" if row.passed else "FAILED", ", ".join(peers) or "-"]


def show(rows: list[Row]) -> str:
    """A table with a line per row, then the notes."""
    header = ["section", "case", *(name for name, _ in COLUMNS), "check", "peers us (ratio)"]
    lines = [header, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [" ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"{row.section} {row.case}: {note}" for row in rows for note in row.notes]
    return "\n".join(text + notes)


def save(path: Path, key: dict[str, Any], rows: list[Row]) -> None:
    """Writes a section's rows under the key that they hold for."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "rows": [asdict(row) for row in rows]}, indent=1))
    partial.replace(path)


def load(path: Path, key: dict[str, Any]) -> list[Row] | None:
    """A section's rows, or None if it was not run with this key."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    return [Row(**row) for row in saved["rows"]] if saved["key"] == key else None
