"""MaskBench's schemas through `response_format` of a server: every answer that ends has to be valid.

    python -m bench.suites.maskbench FOLDER [--count 500] [--artifact DIR] [--json FILE]

FOLDER is `maskbench/data` of guidance-ai/jsonschemabench. Answers are sampled at temperature 1, a quarter of them after
thinking, and judged by the package jsonschema with the format checks of the schema's draft
(`pip install 'jsonschema[format-nongpl]'` for all of them). One that `max_tokens` cuts is asked again with a
bias towards quotes and brackets that close, for the built-in model has no idea of ending JSON. Exit code 1 where an
answer is invalid or a status is neither 200 nor 400.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import jsonschema
import referencing.exceptions

from bench.structure.schemas import Example, examples
from bench.suites.serving import CHAT, MODEL, asked, exported, refusal, serving, tokens_of

TOKENS = (300, 600, 1500, 3000)  # of an answer, by attempt
CLOSING = ('"', '"}', '"]', "}", "]", "}}", "]}")
BIAS = (0, 3, 6, 12)  # of what closes, by attempt
PROMPT = [{"role": "user", "content": "Answer in JSON."}]


@dataclass(frozen=True)
class Outcome:
    """What became of a schema.

    Attributes:
        name: of its file.
        kind: valid, invalid, cut, refused, unjudged (by jsonschema) or failed.
        detail: of a refusal, an invalid answer or a failure.
        seconds: of the first answer.
    """

    name: str
    kind: str
    detail: str
    seconds: float


def ask(client: httpx.Client, numbered: tuple[int, Example], closing: Sequence[int]) -> Outcome:
    """Has the server answer under one schema; `closing` are the tokens that a bias favours."""
    number, example = numbered
    seconds, kind, detail = 0.0, "cut", ""
    for attempt in range(len(TOKENS)):
        bias = {str(token): BIAS[attempt] for token in closing if BIAS[attempt]}
        began = perf_counter()
        answer = client.post(CHAT, json={**_body(number, attempt, example.schema), "logit_bias": bias})
        seconds = seconds or perf_counter() - began
        if answer.status_code != 200:
            return Outcome(example.name, "refused" if answer.status_code == 400 else "failed", refusal(answer), seconds)
        (choice,) = answer.json()["choices"]
        kind, detail = judged(choice, example.schema)
        if kind != "cut":
            break
    return Outcome(example.name, kind, detail, seconds)


def _body(number: int, attempt: int, schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {
        "model": MODEL, "messages": PROMPT, "response_format": form, "max_tokens": TOKENS[attempt],
        "seed": number + 1000 * attempt, "temperature": 1,
        "enable_thinking": number % 4 == 0 and attempt == 0,
    }  # fmt: skip


def judged(choice: dict[str, Any], schema: Any) -> tuple[str, str]:
    """The kind of an answer by the judgement of jsonschema, and why."""
    text = choice["message"]["content"]
    if choice["finish_reason"] != "stop":
        return ("cut", "") if choice["finish_reason"] == "length" else ("failed", f"ended by {choice['finish_reason']}")
    try:
        value = json.loads(text)
    except (ValueError, TypeError) as error:
        return "invalid", f"no JSON ({error}): {text!r}"[:300]
    draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        draft(schema, format_checker=draft.FORMAT_CHECKER).validate(value)
    except jsonschema.ValidationError as error:
        return "invalid", f"{error.json_path}: {error.message}"[:300]
    except (referencing.exceptions.Unresolvable, re.error, RecursionError) as error:
        return "unjudged", f"{type(error).__name__}: {error}"[:300]
    return "valid", ""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500, metavar="N")
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome")
    options = parser.parse_args()
    found = list(enumerate(examples(options.folder, options.count)))
    flags = ("--slots", "8", "--max-model-len", "4096", "--threads", "1")
    with tempfile.TemporaryDirectory() as folder, serving(exported(options.artifact, Path(folder)), *flags) as server:
        closing = [ids[0] for text in CLOSING if len(ids := tokens_of(server[0], text)) == 1]
        outcomes = asked(server[0], found, lambda client, numbered: ask(client, numbered, closing))
    return report(outcomes, options.json)


def report(outcomes: list[Outcome], file: Path | None) -> int:
    """Prints what became of all; the exit code."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    print(f"{len(outcomes)} schemas: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    reasons = Counter(_reason(outcome.detail) for outcome in outcomes if outcome.kind == "refused")
    print("refused: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()))
    for outcome in outcomes:
        if outcome.kind in ("invalid", "failed", "unjudged"):
            print(f"  {outcome.kind} {outcome.name}: {outcome.detail}")
    if file is not None:
        file.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8")
    return int(bool(kinds["invalid"] or kinds["failed"]))


def _reason(detail: str) -> str:
    """The keyword that a refusal names, or its words."""
    keyword = re.search(r"the JSON schema at (?:\S*/)?(\S+):", detail)
    return keyword[1] if keyword else detail.removeprefix("400 ")[:60]


if __name__ == "__main__":
    raise SystemExit(main())
