"""Public sets of JSON schemas with valid and invalid values: MaskBench's files and JSON-Schema-Test-Suite's."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.structure.measure import Costs, walk
from deltart.errors import GenerationError
from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """A schema, and values with whether they are valid under it."""

    name: str
    schema: Any
    values: tuple[tuple[Any, bool], ...]


@dataclass
class Tally:
    """What became of a set."""

    schemas: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    compile_ms: list[float] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    valid: Counter[bool] = field(default_factory=Counter)  # accepted or not
    invalid: Counter[bool] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: int = 0  # values at which a limit was met


def examples(folder: Path, count: int) -> list[Example]:
    """`count` schemas of a folder's JSON files, chosen by a fixed seed."""
    files = sorted(folder.rglob("*.json"))
    random.Random(0).shuffle(files)
    found: list[Example] = []
    for path in files:
        found += _read(path)
        if len(found) >= count:
            break
    return found[:count]


def _read(path: Path) -> Iterator[Example]:
    content = json.loads(path.read_text(encoding="utf-8"))
    groups = content if isinstance(content, list) else [content]
    for index, group in enumerate(groups):
        if isinstance(group, dict) and "schema" in group:
            values = tuple((test["data"], bool(test["valid"])) for test in group.get("tests", []))
            yield Example(f"{path.name}[{index}]", group["schema"], values)


def run(compiler: StructureCompiler, tokenizer: Tokenizer, found: list[Example], strict: bool) -> Tally:
    """Compile every schema, and walk through its values."""
    tally = Tally()
    for example in found:
        tally.schemas += 1
        began = perf_counter()
        try:
            compiled = compiler.compile(Structure.json_schema(example.schema, strict))
        except GenerationError as error:
            tally.refused[error.found.rpartition("/")[2][:40]] += 1
            continue
        tally.compile_ms.append((perf_counter() - began) * 1e3)
        for value, valid in example.values:
            try:
                accepted = walk(compiled, tokenizer, json.dumps(value, ensure_ascii=False), tally.costs)
            except GenerationError:
                tally.failed += 1
                continue
            (tally.valid if valid else tally.invalid)[accepted] += 1
            if accepted != valid:
                tally.wrong.append(f"{example.name}: {'refused' if valid else 'accepted'} {json.dumps(value)[:80]}")
    return tally
