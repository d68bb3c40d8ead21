"""Rendered prompts against transformers' apply_chat_template, with the vendor's template and a small one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deltart.errors import ArtifactError, GenerationError
from deltart.runtime.text.chat import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für <Stadt> & Land, 天気",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
BARE = {"name": "ping", "parameters": {"type": "object", "properties": {}}}


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "  Be brief.\n"}
AGENT = [
    SYSTEM,
    _user("Weather in Köln & Bonn?"),
    _assistant(
        "Looking.",
        reasoning_content="\nTwo cities.\n",
        tool_calls=[_call("get_weather", city="Köln", days=2), _call("get_weather", city='Bo"nn <b>')],
    ),
    {"role": "tool", "content": '{"t": 7}'},
    {"role": "tool", "content": "rain"},
]
VALUES = _call("f", text="a\nb", n=1, x=1.5, yes=True, none=None, many=[1, "é"], map={"k": {"<": ">"}})

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [_user("Hi")],
    "system": [SYSTEM, _user(" Hi \n")],
    "empty system": [{"role": "system", "content": ""}, _user("Hi")],
    "several turns": [_user("1+1?"), _assistant("2"), _user("and 2+2?"), _assistant("4"), _user("ok")],
    "reasoning in the content": [_user("a"), _assistant("<think>\nwhy\n</think>\n\nb"), _user("c")],
    "reasoning beside it": [_user("a"), _assistant("b", reasoning_content="why"), _user("c")],
    "reasoning by another name": [_user("a"), _assistant("b", reasoning="since")],
    "ends with the assistant": [_user("a"), _assistant("<think>\nwhy\n</think>\n\nb")],
    "tool results pending": AGENT,
    "tool results answered": [*AGENT, _assistant("7 degrees.", reasoning_content="done"), _user("thanks")],
    "tool call without content": [_user("go"), _assistant(None, tool_calls=[_call("ping")])],
    "values of every type": [_user("go"), _assistant("", tool_calls=[VALUES])],
    "bare tool call": [_user("go"), _assistant("", tool_calls=[{"name": "g", "arguments": {"a": [1]}}])],
    "null fields": [_user("go"), _assistant("x", tool_calls=None, reasoning_content=None)],
    "parts": [_user([{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}])],
    "image": [_user([{"type": "image", "image": "a.png"}, {"type": "text", "text": "Describe."}])],
    "unicode and markup": [_user("<b>&amp; 'q' \"d\" é 日本 👩‍👩‍👧 {{ x }} {% y %}</b>")],
}
OPTIONS = [
    {},
    {"enable_thinking": False},
    {"preserve_thinking": True},
    {"add_generation_prompt": False},
    {"tools": [WEATHER, BARE]},
    {"tools": [WEATHER], "enable_thinking": False, "preserve_thinking": True},
]


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> ChatTemplate:
    return ChatTemplate.from_folder(qwen_folder)


@pytest.fixture(scope="module")
def reference(qwen_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(qwen_folder)


def _expected(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_is_that_of_transformers(
    qwen: ChatTemplate, reference: PreTrainedTokenizerBase, name: str, options: dict[str, Any]
) -> None:
    messages = CONVERSATIONS[name]
    assert qwen.render(messages, **options) == _expected(reference, messages, options)


def test_arguments_as_json_text_render_like_the_mapping(qwen: ChatTemplate) -> None:
    function = VALUES["function"]
    call = {"function": {**function, "arguments": json.dumps(function["arguments"])}}
    messages = CONVERSATIONS["values of every type"]
    assert qwen.render([messages[0], _assistant("", tool_calls=[call])]) == qwen.render(messages)


def test_messages_are_left_as_they_are(qwen: ChatTemplate) -> None:
    before = json.dumps(AGENT)
    qwen.render(AGENT, tools=[WEATHER])
    assert json.dumps(AGENT) == before


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "No messages provided"),
        ([_user("a"), SYSTEM], "System message must be at the beginning"),
        ([SYSTEM], "No user query found"),
        ([_user("a"), {"role": "wizard", "content": "b"}], "Unexpected message role"),
        ([_user([{"type": "smell"}])], "Unexpected item type"),
        ([_user(3)], "Unexpected content type"),
        (["hello"], "a message that is a str"),
        ([_user("a"), _assistant("", tool_calls=["ping"])], "a tool call that is a str"),
        ([_user("a"), _assistant("", tool_calls=[{"name": "f", "arguments": [1]}])], "'f' with arguments"),
        ([_user("a"), _assistant("", tool_calls=[{"name": "f", "arguments": "{1"}])], "'f' with arguments"),
        ([_user("a"), _assistant("", tool_calls=[{"arguments": {}}])], "name"),
    ],
)
def test_refused_messages_say_why(qwen: ChatTemplate, messages: list[Any], match: str) -> None:
    with pytest.raises(GenerationError, match=match) as caught:
        qwen.render(messages)
    assert all((caught.value.expected, caught.value.hint))


SMALL_CASES: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([_user(" hi "), _assistant("yo"), _user("é")], {}),
    ([_user("hi"), _assistant("yo"), _user("<é>")], {"preserve_thinking": True, "tools": [WEATHER]}),
    ([_user(None), _assistant("x")], {"preserve_thinking": True}),
    ([_user("hi"), _assistant("end")], {"enable_thinking": False, "add_generation_prompt": False}),
]


@pytest.mark.parametrize(("messages", "options"), SMALL_CASES)
def test_template_inside_the_tokenizer_config(
    small_folder: Path, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    options = {"enable_thinking": True, "preserve_thinking": False, **options}
    reference = AutoTokenizer.from_pretrained(small_folder)
    assert ChatTemplate.from_folder(small_folder).render(messages, **options) == _expected(reference, messages, options)


def test_the_template_file_comes_before_the_one_in_the_config(small_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert ChatTemplate.from_folder(folder).render([_user("hi")]) == "hi!"


def test_a_folder_without_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no chat template"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="is not UTF-8"):
        ChatTemplate.from_folder(tmp_path)


def test_a_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(ArtifactError, match="does not compile"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages | items | list }}",
        "{{ messages[0].missing.field }}",
    ],
)
def test_a_template_can_neither_escape_nor_crash(source: str) -> None:
    with pytest.raises(GenerationError, match="refused"):
        ChatTemplate(source).render([_user("hi")])
