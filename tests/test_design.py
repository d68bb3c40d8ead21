"""DESIGN.md names places that exist, and gives each decision what would change it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^##+ ", DESIGN.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_places_exist() -> None:
    named = re.findall(r"`((?:export|plugins|runtime|calib|tests|deltart)/[\w/.]*)`", DESIGN)
    assert len(named) > 20
    assert not [place for place in named if not (ROOT / place).exists()]


def test_every_kind_of_change_has_its_place() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", section("Where something new goes"), re.MULTILINE)
    kinds = {kind for kind, _ in rows}
    assert {"op", "model", "storage format", "target", "sampling parameter", "HTTP field", "latency metric"} <= kinds
    assert all("`" in place for _, place in rows[1:])


def test_decisions_are_numbered_and_can_be_changed() -> None:
    decisions = re.split(r"^(?=\d+\. )", section("Decisions"), flags=re.MULTILINE)[1:]
    assert [int(text.split(".")[0]) for text in decisions] == list(range(1, len(decisions) + 1))
    assert all(re.search(r"\*If [^*]+\.\*\s*$", text) for text in decisions)
