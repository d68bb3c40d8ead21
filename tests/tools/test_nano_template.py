"""Nano's chat template speaks the family's protocol: literal renderings, and the vendor's template where present."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "tools" / "nano" / "checkpoint" / "chat_template.jinja"
VENDOR = [parent / "shared" / "qwen3_6" / "Qwen3.6-27B.chat_template.jinja" for parent in ROOT.parents]

USER = {"role": "user", "content": " Weather in Rome? "}
SCHEMA = {
    "type": "function",
    "function": {"name": "get", "parameters": {"properties": {"city": {"type": "string"}}}},
}
CALL = {
    "type": "function",
    "function": {"name": "get", "arguments": {"city": "Rome", "days": 2, "deep": {"a": [1]}}},
}
CALLED = {"role": "assistant", "content": "", "reasoning_content": "Call it.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Be brief.\n"}, USER],
    "empty system": [{"role": "system", "content": ""}, USER],
    "two turns": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny."}, USER],
    "ends with assistant": [USER, {"role": "assistant", "content": "Sunny.", "reasoning_content": "hm"}],
    "no thought": [USER, {"role": "assistant", "content": "Sunny."}],
    "tool loop": [USER, CALLED, RESULT],
    "two results": [
        USER,
        {**CALLED, "content": "Wait."},
        RESULT,
        RESULT,
        {"role": "assistant", "content": "Sunny."},
    ],
    "two calls": [USER, {**CALLED, "tool_calls": [CALL, CALL["function"]]}, RESULT, RESULT],
    "after a tool loop": [USER, CALLED, RESULT, {"role": "assistant", "content": "Sunny."}, USER],
    "wrapped result": [USER, CALLED, {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}],
    "text parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
}
SETTINGS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "enable_thinking": False},
    {"add_generation_prompt": False, "preserve_thinking": True},
]
BROKEN: dict[str, list[dict[str, Any]]] = {
    "no messages": [],
    "no query": [{"role": "system", "content": "Be brief."}],
    "late system": [USER, {"role": "system", "content": "Be brief."}],
    "unknown role": [USER, {"role": "wizard", "content": "Abra."}],
}


def render(path: Path, messages: list[dict[str, Any]], **settings: Any) -> str:
    return str(_compile_jinja_template(path.read_text()).render(messages=messages, **settings))


@pytest.fixture(scope="module")
def vendor() -> Path:
    found = [path for path in VENDOR if path.exists()]
    if not found:
        pytest.skip("the vendor's chat template is not on this machine")
    return found[0]


def test_thinking_on_and_off() -> None:
    head = "<|im_start|>user\nWeather in Rome?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert render(OURS, [USER], add_generation_prompt=True) == head
    off = render(OURS, [USER], add_generation_prompt=True, enable_thinking=False)
    assert off == head + "\n</think>\n\n"


def test_tool_loop_in_full() -> None:
    text = render(OURS, CONVERSATIONS["tool loop"], tools=[SCHEMA], add_generation_prompt=True)
    assert text.partition("<|im_end|>\n")[2] == (
        "<|im_start|>user\nWeather in Rome?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nCall it.\n</think>\n\n"
        "<tool_call>\n<function=get>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
        '<parameter=deep>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("name", BROKEN)
def test_refuses(name: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        render(OURS, BROKEN[name])


def test_refuses_images() -> None:
    with pytest.raises(jinja2.TemplateError, match="text"):
        render(OURS, [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_matches_the_vendor(vendor: Path, name: str, settings: dict[str, Any]) -> None:
    messages = CONVERSATIONS[name]
    assert render(OURS, messages, **settings) == render(vendor, messages, **settings)


@pytest.mark.parametrize("name", BROKEN)
def test_vendor_refuses_the_same(vendor: Path, name: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        render(vendor, BROKEN[name])


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_tools_section_is_laid_out_as_the_vendors(vendor: Path, system: str) -> None:
    messages = [{"role": "system", "content": system}, USER]
    ours, theirs = (render(path, messages, tools=[SCHEMA, SCHEMA]) for path in (OURS, vendor))
    assert ours.partition("</tools>")[0].split("\n<tools>")[1] == theirs.partition("</tools>")[0].split("<tools>")[1]
    assert ours.startswith("<|im_start|>system\n# Tools\n\n") and theirs.startswith("<|im_start|>system\n# Tools\n\n")
    assert ours.partition("<|im_end|>\n")[2] == theirs.partition("<|im_end|>\n")[2]
    for text in (ours, theirs):
        assert text.partition("<|im_end|>")[0].endswith("\n\nBe brief." if system else ">")
