"""Numbers in structured replies stay within float64, however far a model goes on with them."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal

import pytest

from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.structure import Structure
from support.walks import Walker

TEXTS = [
    "0", "-0", "0.5", "9.9e307", "1e308", "-1e308", "12e306", "12e307", "1E+3080", "1e-99999", "3." + "3" * 400,
    "1e00001", "9" * 308, "9" * 309, "9" * 309 + ".5", "1" * 200 + "e108", "1" * 200 + "e109", "5e99999",
]  # fmt: skip


def permitted(compiler: StructureCompiler, walker: Walker, structure: Structure, text: str) -> bool:
    (end, *_) = walker.tokenizer.eos_ids
    tokens = [*walker.tokenizer.encode_plain(text), end]
    return bool(compiler.compile(structure).matcher(thinking=False).permits(tokens) == len(tokens))


def made(rng: random.Random) -> str:
    """Some number near the bound."""
    whole = str(rng.randrange(1, 10)) + "".join(rng.choices("0123456789", k=rng.choice([0, 3, 150, 306, 307, 308])))
    fraction = rng.choice(["", ".0", ".75"])
    power = rng.choice(["", "e-400", f"e{308 - len(whole) + rng.randrange(-1, 3)}", f"E+{rng.randrange(400)}"])
    return rng.choice(["", "-"]) + whole + fraction + power


@pytest.mark.parametrize("text", [*TEXTS, *map(made, map(random.Random, range(60)))])
def test_a_number_is_drawn_where_it_is_below_the_bound(compiler: StructureCompiler, walker: Walker, text: str) -> None:
    fine = Decimal(text).copy_abs() < Decimal(10) ** 308
    assert math.isfinite(float(text)) or not fine
    assert permitted(compiler, walker, Structure.json_schema({"type": "number"}), text) == fine
    assert permitted(compiler, walker, Structure.json_object(), f'{{"a": [{text}, "1e999\\"1e999"]}}') == fine
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "number"}}}}}]
    call = f"<tool_call>\n<function=f>\n<parameter=a>\n{text}\n</parameter>\n</function>\n</tool_call>"
    tokens = walker.tokenizer.encode(call)
    constraint = compiler.compile(Structure.tools(tools, "required")).matcher(thinking=False)
    assert (constraint.permits(tokens) == len(tokens)) == fine


def test_small_numbers_may_be_written_in_any_way(compiler: StructureCompiler, walker: Walker) -> None:
    """The exponent alone decides where the whole part is zero."""
    number = Structure.json_schema({"type": "number"})
    assert permitted(compiler, walker, number, "0.001e308")
    assert not permitted(compiler, walker, number, "0.001e309")


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_likes_digits_ends(compiler: StructureCompiler, walker: Walker, seed: int) -> None:
    """What may come is drawn from digits and marks where it can be: the number ends, and is finite."""
    rng = random.Random(seed)
    liked = {
        token
        for token, piece in enumerate(walker.tokenizer.pieces())
        if piece in [*map(bytes, zip(b"0123456789")), b"e"]
    }
    constraint = compiler.compile(
        Structure.json_schema({"type": "integer"} if seed % 2 else {"type": "number"})
    ).matcher(False)
    tokens: list[int] = []
    while liked & set(allowed := walker.allowed(constraint)):
        tokens.append(rng.choice(sorted(liked & set(allowed))))
        constraint.accept(tokens[-1])
    assert math.isfinite(float(json.loads(walker.tokenizer.decode(tokens)))) and len(tokens) >= 4
