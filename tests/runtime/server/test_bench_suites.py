"""The runners of other people's suites: what they ask, and that they see what is wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bench.structure.schemas import Example
from bench.suites import bfcl, maskbench
from bench.suites.llama_cpp.server import flags
from support.serving import Served

pytest.importorskip("llguidance")

AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
ADD = {"type": "dict", "properties": {"a": {"type": "float"}, "b": {"type": "tuple", "items": {"type": "any"}}}}
QUESTION = {
    "id": "q", "question": [[{"role": "user", "content": "Add."}]],
    "function": [{"name": "f.g", "parameters": {**ADD, "required": ["a"]}}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason", "kind"),
    [
        ('{"age": 3}', "stop", "valid"),
        ('{"age": "3"}', "stop", "invalid"),
        ('{"age": 3', "stop", "invalid"),
        (None, "stop", "invalid"),
        ('{"age": 3', "length", "cut"),
        ('{"age": 3}', "content_filter", "failed"),
    ],
)
def test_an_answer_is_judged(text: str | None, reason: str, kind: str) -> None:
    choice = {"message": {"content": text}, "finish_reason": reason}
    assert maskbench.judged(choice, AGE)[0] == kind


def test_formats_are_judged_by_the_draft() -> None:
    choice = {"message": {"content": '"2026-02-30"'}, "finish_reason": "stop"}
    assert maskbench.judged(choice, {"type": "string", "format": "date"})[0] == "invalid"


@pytest.mark.parametrize(
    ("calls", "fault"),
    [
        ([], "no call"),
        ([("f.h", "{}")], "a call of 'f.h'"),
        ([("f.g", '{"a": 1')], "f.g: no JSON"),
        ([("f.g", '{"a": 1}'), ("f.g", '{"a": "1"}')], "f.g: $.a: '1' is not of type 'number'"),
        ([("f.g", '{"a": 1e3, "b": ["x", 1]}')], ""),
    ],
)
def test_calls_are_judged(calls: list[tuple[str, str]], fault: str, tmp_path: Path) -> None:
    (question, _) = questions(tmp_path)
    found = bfcl.fault(question, calls)
    assert found.startswith(fault) and bool(found) == bool(fault)


def questions(folder: Path) -> list[bfcl.Question]:
    (folder / "BFCL_v4_simple_python.json").write_text(json.dumps(QUESTION) + "\n")
    return list(bfcl.questions(folder, "simple_python", None))


def test_both_suites_over_http(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One schema is answered and one is refused; both kinds of forced calls come."""
    monkeypatch.setattr(maskbench, "MODEL", server.service.settings.names[0])
    monkeypatch.setattr(bfcl, "MODEL", server.service.settings.names[0])

    def answered(number: int, schema: Any) -> maskbench.Outcome:
        return maskbench.ask(server.client, (number, Example("s", schema, ())), [])

    assert answered(1, AGE).kind == "valid"
    refused = answered(2, {"not": {"type": "string"}})
    assert refused.kind == "refused" and "not" in refused.detail
    for question in questions(tmp_path):
        for number in range(3):  # whole, streamed, responses
            outcome = bfcl.ask(server.client, bfcl.Question(**{**vars(question), "number": number}), [])
            assert (outcome.kind, outcome.detail) == ("valid", "") and outcome.calls >= 1


def test_flags_of_llama_server() -> None:
    made = flags(
        ["--port", "8080", "--ctx-size", "512", "--parallel", "2", "--alias", "a,b", "--no-slots", "--temp", "0.8"]
    )
    named = dict(itertools.pairwise(made))
    assert (named["--port"], named["--slots"], named["--max-model-len"]) == ("8080", "2", "1024")
    assert made[made.index("--served-model-name") + 1 :][:3] == ["a", "b", "test"] and "--api-key" not in made
