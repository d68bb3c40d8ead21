"""Scores of the seeing nano by skill, against its bars."""

from __future__ import annotations

from tools.nano.evaluate import Tally, overall

BAR = 0.9  # of all held-out questions about pictures


def table(tallies: dict[tuple[str, bool], Tally]) -> str:
    """A Markdown table of the scores, skills in order of appearance."""
    lines = ["| skill | questions | exact | stops |", "|---|---|---|---|"]
    for skill in (*dict.fromkeys(skill for skill, _ in tallies), None):
        total = overall(tallies, skill)
        stops = total.stopped / total.asked
        lines.append(f"| {skill or 'all'} | {total.asked} | {total.share:.1%} | {stops:.1%} |")
    return "\n".join(lines)
