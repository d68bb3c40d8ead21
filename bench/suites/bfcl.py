"""BFCL's functions through a server's `tool_choice`: every call can be read, and is valid under its function's schema.

    python -m bench.suites.bfcl FOLDER [--categories NAME ...] [--count N] [--artifact DIR] [--json FILE]

FOLDER is `bfcl_eval/data` of the package bfcl-eval. Each question is asked twice, with `required` and with a function's
name, whole, streamed and by /v1/responses in turns, at temperature 1. What the calls say is not judged: the built-in
model knows no such functions. A reply that `max_tokens` cuts is asked again with a bias towards what closes a value.
Exit code 1 where a reply is refused, holds no call, or one that is not JSON or not valid.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from bench.suites.serving import CHAT, MODEL, asked, exported, refusal, serving, tokens_of

TOKENS = (400, 800, 2000, 4000)  # of a reply, by attempt
BIAS = (0, 3, 6, 9)  # of what closes, by attempt
CLOSING = ("\n</", "]", "}", '"]', '"}')  # what ends a value or begins its end
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple")

# The types that BFCL writes in the words of its programming languages; "any" names none.
_TYPES = {
    "dict": "object", "HashMap": "object", "Hashtable": "object",
    "list": "array", "tuple": "array", "Array": "array", "ArrayList": "array", "Queue": "array", "Stack": "array",
    "float": "number", "double": "number", "bool": "boolean", "Boolean": "boolean", "String": "string",
    "char": "string", "byte": "integer", "short": "integer", "long": "integer", "Bigint": "integer",
}  # fmt: skip
_JSON_TYPES = {"object", "array", "number", "boolean", "string", "integer", "null"}


@dataclass(frozen=True)
class Question:
    """One of BFCL's: its id, messages, and functions with JSON schemas; and whether the call of the last is asked."""

    key: str
    number: int
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    named: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a question: valid, invalid, cut or failed; how many calls came, and why it is not valid."""

    key: str
    kind: str
    calls: int
    detail: str


def questions(folder: Path, category: str, count: int | None) -> Iterator[Question]:
    """The first `count` of a category, each in both ways."""
    lines = (folder / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[:count]):
        entry = json.loads(line)
        functions = [{**function, "parameters": as_schema(function["parameters"])} for function in entry["function"]]
        for named in (False, True):
            yield Question(entry["id"], number, entry["question"][0], functions, named)


def as_schema(node: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema from BFCL's description of a type."""
    made = {key: value for key, value in node.items() if key not in ("type", "optional")}
    kind = _TYPES.get(node.get("type", ""), node.get("type"))
    if kind in _JSON_TYPES:
        made["type"] = kind
    if isinstance(node.get("properties"), dict):
        made["properties"] = {name: as_schema(inner) for name, inner in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            made[key] = as_schema(node[key])
    return made


def ask(client: httpx.Client, question: Question, closing: Sequence[int]) -> Outcome:
    """Has the server answer one question; `closing` are the tokens that a bias favours."""
    way = (_whole, _streamed, _response)[question.number % 3]
    for attempt, (tokens, bias) in enumerate(zip(TOKENS, BIAS, strict=True)):
        fields = {
            "seed": question.number + 1000 * attempt, "temperature": 1, "model": MODEL, "max_tokens": tokens,
            "enable_thinking": question.number % 2 == 0 and attempt == 0,
            "logit_bias": {str(token): bias for token in closing if bias},
        }  # fmt: skip
        answer, calls, end = way(client, question, fields)
        if answer is not None:
            return Outcome(question.key, "failed", 0, refusal(answer))
        if end != "length":
            why = f"ended by {end}" if end != "tool_calls" else fault(question, calls)
            return Outcome(question.key, "invalid" if why else "valid", len(calls), why)
    return Outcome(question.key, "cut", len(calls), "")


Calls = list[tuple[str, str]]
Answered = tuple[httpx.Response | None, Calls, str]  # an error, else (name, arguments) of the calls and how it ended


def _whole(client: httpx.Client, question: Question, fields: dict[str, Any]) -> Answered:
    answer = client.post(CHAT, json=_chat(question, fields))
    if answer.status_code != 200:
        return answer, [], ""
    (choice,) = answer.json()["choices"]
    functions = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    return None, [(function["name"], function["arguments"]) for function in functions], choice["finish_reason"]


def _streamed(client: httpx.Client, question: Question, fields: dict[str, Any]) -> Answered:
    calls: list[list[str]] = []
    end = "nothing"
    with client.stream("POST", CHAT, json={**_chat(question, fields), "stream": True}) as answer:
        if answer.status_code != 200:
            answer.read()
            return answer, [], ""
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return None, [], f"an error event: {event['error']['message']}"
            for choice in event["choices"]:
                for delta in choice["delta"].get("tool_calls") or ():
                    if delta["index"] == len(calls):
                        calls.append([delta["function"]["name"], ""])
                    calls[delta["index"]][1] += delta["function"].get("arguments", "")
                end = choice["finish_reason"] or end
    return None, [(name, arguments) for name, arguments in calls], end


def _response(client: httpx.Client, question: Question, fields: dict[str, Any]) -> Answered:
    tools = [{"type": "function", "strict": False, **function} for function in question.functions]
    choice = {"type": "function", "name": question.functions[-1]["name"]} if question.named else "required"
    effort = {"effort": "medium" if fields["enable_thinking"] else "none"}
    body = {"input": question.messages, "tools": tools, "tool_choice": choice, "reasoning": effort, **fields}
    body["max_output_tokens"] = body.pop("max_tokens")
    answer = client.post("/v1/responses", json=body)
    if answer.status_code != 200:
        return answer, [], ""
    told = answer.json()
    calls = [(item["name"], item["arguments"]) for item in told["output"] if item["type"] == "function_call"]
    return None, calls, "tool_calls" if told["status"] == "completed" else "length"


def _chat(question: Question, fields: dict[str, Any]) -> dict[str, Any]:
    tools = [{"type": "function", "function": function} for function in question.functions]
    named = {"type": "function", "function": {"name": question.functions[-1]["name"]}}
    choice = named if question.named else "required"
    return {"messages": question.messages, "tools": tools, "tool_choice": choice, **fields}


def fault(question: Question, calls: Calls) -> str:
    """What is wrong with the calls; empty if nothing is."""
    schemas = {function["name"]: function["parameters"] for function in question.functions}
    if not calls:
        return "no call"
    for name, arguments in calls:
        if name not in schemas or (question.named and name != question.functions[-1]["name"]):
            return f"a call of {name!r}"
        try:
            jsonschema.validate(json.loads(arguments), schemas[name], jsonschema.Draft202012Validator)
        except ValueError as error:
            return f"{name}: no JSON ({error}): {arguments[:200]!r}"
        except jsonschema.ValidationError as error:
            return f"{name}: {error.json_path}: {error.message}"[:300]
    return ""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, metavar="NAME")
    parser.add_argument("--count", type=int, metavar="N", help="questions of each category (default: all)")
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome")
    options = parser.parse_args()
    flags = ("--slots", "8", "--max-model-len", "16384", "--threads", "1")
    failed, everything = False, []
    with tempfile.TemporaryDirectory() as folder, serving(exported(options.artifact, Path(folder)), *flags) as server:
        closing = [token for text in CLOSING for token in tokens_of(server[0], text)]
        for category in options.categories:
            cases = list(questions(options.folder, category, options.count))
            outcomes = asked(server[0], cases, lambda client, case: ask(client, case, closing))
            everything += [vars(outcome) for outcome in outcomes]
            kinds = Counter(outcome.kind for outcome in outcomes)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            print(f"{category}: {len(outcomes)} replies, {told}; {sum(o.calls for o in outcomes)} calls", flush=True)
            for outcome in outcomes:
                if outcome.kind in ("invalid", "failed"):
                    print(f"  {outcome.kind} {outcome.key}: {outcome.detail}")
            failed |= bool(kinds["invalid"] or kinds["failed"])
    if options.json is not None:
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
