"""What commands show: tables and lines whose text is text, not markup, and of which nothing is cut off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltart.cli.streams import plain

UNBOUNDED = 100_000  # columns of a pipe or a file


class _Screen(Console):
    """rich's console, which would end the process by itself when nobody reads on."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """Standard output, or error: as wide as the terminal, or without bound. Strings are shown as they are."""
    plainly = _Screen(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not plainly.is_terminal:
        plainly.width = UNBOUNDED
    return plainly


def line(text: str, style: str = "") -> Text:
    """A line to print; on a terminal it may be styled."""
    return Text(plain(text), style=style, overflow="fold")


def table(headers: Sequence[str], rows: Iterable[Sequence[str | Text]], title: str = "") -> Table:
    """A table with `headers`, or none where they are empty. Text too long for the terminal is folded."""
    rows = list(rows)
    made = Table(show_header=any(headers), title=line(title) if title else None, title_justify="left")
    for header in headers or [""] * max(map(len, rows), default=0):
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else line(cell) for cell in row))
    return made
