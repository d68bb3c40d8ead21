"""Counts in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 file", "2 files", "1,307 tensors"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
