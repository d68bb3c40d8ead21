"""Calibration text: JSON lines in, token rows out, split into rows to fit to, to choose by and to report on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltart.errors import CalibrationError, GenerationError
from deltart.json_files import parse_json
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.text_files import lines, read_bytes

DEFAULT = Path(__file__).with_name("default.jsonl")
ROW_TOKENS = 512
HELD_OUT = 5  # every fifth row
VALIDATED, VALIDATION_TOKENS = 8, 1024  # at most every eighth of the others, about so many tokens


@dataclass(frozen=True)
class Dataset:
    """Token rows of at most ROW_TOKENS tokens, and the SHA-256 of the file they come from.

    Attributes:
        calibration: what statistics are gathered of.
        validation: what candidates are chosen by.
        held_out: what neither has seen, for the report.
    """

    calibration: list[list[int]]
    validation: list[list[int]]
    held_out: list[list[int]]
    sha256: str

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens each part has."""
        parts = {"calibration": self.calibration, "validation": self.validation, "held_out": self.held_out}
        return {name: sum(map(len, rows)) for name, rows in parts.items()}


def read_dataset(path: Path, checkpoint: Path, vocab_size: int) -> Dataset:
    """Read JSON lines, each {"messages": [...], "tools"?, "enable_thinking"?}, {"text": ...} or {"ids": [...]}.

    Messages are rendered with the checkpoint's own chat template; a last message from the user gets the opening
    of the reply. Longer conversations are cut into rows.

    Raises:
        CalibrationError: the file is absent, malformed or too small, or a token is outside the vocabulary.
        ArtifactError: a line needs a tokenizer or template that `checkpoint` lacks.
    """
    raw = read_bytes(path, CalibrationError)
    encoder = _Encoder(checkpoint)
    rows: list[list[int]] = []
    for place, line in lines(raw, str(path), CalibrationError):
        ids = encoder.ids(line, place)
        rows += [ids[begin : begin + ROW_TOKENS] for begin in range(0, len(ids), ROW_TOKENS)]
    rows = [row for row in rows if len(row) > 1]
    outside = [token for row in rows for token in row if not 0 <= token < vocab_size]
    if outside:
        raise CalibrationError(f"{path}: token {outside[0]}", f"0 to {vocab_size - 1}", "use this model's tokenizer")
    if len(rows) < HELD_OUT:
        raise CalibrationError(
            f"{path} gives {len(rows)} rows of text", f"at least {HELD_OUT}, so that one can be held out", "add text"
        )
    held_out = [row for number, row in enumerate(rows) if number % HELD_OUT == HELD_OUT - 1]
    others = [row for number, row in enumerate(rows) if number % HELD_OUT != HELD_OUT - 1]
    stride = max(VALIDATED, _stride(others, VALIDATION_TOKENS))
    calibration = [row for number, row in enumerate(others) if number % stride]
    return Dataset(calibration, others[::stride], held_out, hashlib.sha256(raw).hexdigest())


def spread(rows: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """About `tokens` of the rows, evenly from first to last: texts are often sorted by kind."""
    return list(rows[:: _stride(rows, tokens)])


def _stride(rows: Sequence[list[int]], tokens: int) -> int:
    return max(1, -(-sum(map(len, rows)) // tokens))


class _Encoder:
    """Lines to token ids, the tokenizer and template read when first needed."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None

    def ids(self, line: str, where: str) -> list[int]:
        item = parse_json(line, where, CalibrationError)
        ids = item.get("ids") if isinstance(item, dict) else None
        if isinstance(ids, list) and all(type(token) is int for token in ids):
            return ids
        text = self._text(item, where) if isinstance(item, dict) else None
        if not isinstance(text, str):
            raise CalibrationError(f"{where} has no usable field", "'messages', 'text' or 'ids'", "correct it")
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(self._checkpoint)
        return self._tokenizer.encode(text)

    def _text(self, item: Mapping[str, Any], where: str) -> Any:
        if "messages" not in item:
            return item.get("text")
        if self._template is None:
            self._template = ChatTemplate.from_folder(self._checkpoint)
        messages = item["messages"]
        try:
            return self._template.render(
                messages,
                tools=item.get("tools"),
                enable_thinking=item.get("enable_thinking"),
                add_generation_prompt=messages[-1]["role"] != "assistant",
            )
        except (GenerationError, KeyError, IndexError, TypeError) as error:
            raise CalibrationError(f"{where}: {error}", "messages the template accepts", "correct it") from None
