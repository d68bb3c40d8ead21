"""The built-in checkpoint's tokenizer, and what structured output makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.vocabulary import Vocabulary
from deltart.runtime.text.tokenizer import Tokenizer
from support.walks import Walker

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(NANO)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, tokenizer.vocab_limit)


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> Iterator[StructureCompiler]:
    made = StructureCompiler(tokenizer, tokenizer.vocab_limit)
    yield made
    made.close()


@pytest.fixture(scope="session")
def walker(tokenizer: Tokenizer) -> Walker:
    return Walker(tokenizer)
