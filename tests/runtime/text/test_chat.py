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


THINKS_WHEN_ASKED = (
    "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is true %}<think>"
    "{% else %}<think></think>{% endif %}{{ preserve_thinking is defined }}"
)


@pytest.mark.parametrize(
    "options", [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"preserve_thinking": True}]
)
def test_the_templates_own_default_unless_asked(small_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text(THINKS_WHEN_ASKED)
    expected = _expected(AutoTokenizer.from_pretrained(folder), [_user("hi")], options)
    assert ChatTemplate.from_folder(folder).render([_user("hi")], **options) == expected


@pytest.mark.parametrize("arguments", ["", "{}", "null", " null ", None, {}])
def test_a_call_without_arguments(qwen: ChatTemplate, arguments: Any) -> None:
    def prompt(arguments: Any) -> str:
        call = {"function": {"name": "now", "arguments": arguments}}
        return qwen.render([_user("time?"), _assistant(None, tool_calls=[call]), {"role": "tool", "content": "12:04"}])

    assert prompt(arguments) == prompt({})
    missing = {"function": {"name": "now"}}
    assert qwen.render([_user("time?"), _assistant(None, tool_calls=[missing])])


NAMED = [{"name": "default", "template": "default"}, {"name": "tool_use", "template": "tools"}]
PLACES: dict[str, dict[str, Any]] = {
    "a list of both": {"config": NAMED},
    "a list of the default": {"config": NAMED[:1]},
    "a list with a third": {"config": [*NAMED, {"name": "rag", "template": "rag"}]},
    "a list and the file": {"config": NAMED, "files": {"chat_template.jinja": "file"}},
    "files of both": {"files": {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "tools"}},
    "files of others": {"files": {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag"}},
    "a default file by name": {"files": {"additional_chat_templates/default.jinja": "default"}},
    "a text and the files": {
        "config": "text",
        "files": {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "tools"},
    },
}


@pytest.mark.parametrize("tools", [None, [], [WEATHER]])
@pytest.mark.parametrize("place", PLACES)
def test_named_templates(small_folder: Path, tmp_path: Path, place: str, tools: list[Any] | None) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "copy"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = PLACES[place].get("config")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in PLACES[place].get("files", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    expected = _expected(AutoTokenizer.from_pretrained(folder), [_user("hi")], {"tools": tools})
    assert ChatTemplate.from_folder(folder).render([_user("hi")], tools) == expected


def test_templates_without_a_default_are_refused_by_name() -> None:
    with pytest.raises(ArtifactError, match="rag, summary"):
        ChatTemplate({"summary": "a", "rag": "b"})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"image": "a.png"},
        {"type": "input_image", "image_url": "x"},
        {"type": "video", "video": "a.mp4"},
        {"type": "input_audio", "input_audio": {"data": ""}},
    ],
)
def test_a_text_model_refuses_media_by_name(qwen_folder: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    template = ChatTemplate.from_folder(folder)
    with pytest.raises(GenerationError, match="message 2 holds a part of type") as caught:
        template.render([_user("hi"), _user([{"type": "text", "text": "see"}, part])])
    assert "no vision" in caught.value.expected


def test_an_artifact_without_a_vision_graph_is_a_text_model(qwen_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    image = _user([{"type": "image", "image": "a.png"}])
    for graphs in (
        '{"model": {}}',
        "null",
        "true",
        "7",
        '"vision"',
        '["vision"]',
    ):  # malformed ones are load_manifest's
        (folder / "manifest.json").write_text(f'{{"graphs": {graphs}}}')
        with pytest.raises(GenerationError, match="a part of type 'image'"):
            ChatTemplate.from_folder(folder).render([image])
    (folder / "manifest.json").write_text('{"graphs": {"model": {}, "vision": {}}}')
    assert "<|image_pad|>" in ChatTemplate.from_folder(folder).render([image])


@pytest.mark.parametrize("tool", [None, 3, "f", {}, {"name": 3}, {"function": 3}, {"name": "f", "parameters": [1]}])
def test_what_is_no_tool_is_refused(qwen: ChatTemplate, tool: Any) -> None:
    with pytest.raises(GenerationError, match="not a function schema"):
        qwen.render([_user("hi")], [tool])
