"""The checkpoint's chat template: messages and tools to the prompt text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltart.errors import ArtifactError, GenerationError
from deltart.runtime.text.tokenizer import read_json, token_text
from deltart.text_files import read_text

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

# Names under which clients send an assistant's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template. It is foreign code, so it runs in jinja2's sandbox.

    Args:
        source: the template, written for the environment of transformers' apply_chat_template.
        special_tokens: texts such as eos_token that the template may use.

    Raises:
        ArtifactError: the template does not compile.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(
                f"the chat template does not compile: {error}",
                "a jinja2 template for transformers",
                "copy chat_template.jinja from the vendor's checkpoint",
            ) from error

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """The template of chat_template.jinja, else the one inside tokenizer_config.json.

        Raises:
            ArtifactError: neither is there, or the template does not compile.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        path = folder / "chat_template.jinja"
        source = _read(path) if path.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            raise ArtifactError(
                f"{folder} has no chat template",
                "chat_template.jinja, or a chat_template text in tokenizer_config.json",
                "copy chat_template.jinja from the vendor's checkpoint, or generate without chat",
            )
        texts = {name: token_text(config[name]) for name in config if name.endswith("_token")}
        return cls(source, {name: text for name, text in texts.items() if text is not None})

    @classmethod
    def found_in(cls, folder: str | Path) -> ChatTemplate | None:
        """As `from_folder`; None where the folder has no template.

        Raises:
            ArtifactError: the template does not compile.
        """
        folder = Path(folder)
        if (folder / "chat_template.jinja").exists() or "chat_template" in read_json(folder / "tokenizer_config.json"):
            return cls.from_folder(folder)
        return None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        enable_thinking: bool = True,
        preserve_thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for `messages`, as transformers' apply_chat_template writes it.

        Fields that are null count as absent, reasoning may be called `reasoning_content`, `thinking` or
        `reasoning`, and the arguments of a tool call may be a mapping or the JSON text of one.

        Args:
            messages: mappings with `role`, `content` and what else the template reads, oldest first.
            tools: JSON schemas of the functions on offer.
            enable_thinking: leave the reply open inside <think>, rather than with an empty thought.
            preserve_thinking: keep the reasoning of all replies, not only of those since the last query.
            add_generation_prompt: end with the opening of the assistant's reply.

        Raises:
            GenerationError: messages that the template refuses or that are malformed.
        """
        normal = [_normal(message) for message in messages]
        try:
            return self._template.render(
                **self._special_tokens,
                messages=normal,
                tools=None if tools is None else list(tools),
                enable_thinking=enable_thinking,
                preserve_thinking=preserve_thinking,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template can fail in as many ways as Python
            raise GenerationError(
                f"the chat template refused the messages: {error}",
                "roles and contents that this checkpoint's template accepts",
                "change the messages; chat_template.jinja says what it takes",
            ) from error


def _read(path: Path) -> str:
    return read_text(path, ArtifactError)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  # the attribute jinja2 reads, typed there

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    """The settings, filters and globals that transformers gives to chat templates."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _normal(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise GenerationError(
            f"a message that is a {type(message).__name__}",
            "a mapping with role and content",
            "send a list of mappings",
        )
    normal = {name: value for name, value in message.items() if value is not None}
    reasoning = next((normal[name] for name in _REASONING if name in normal), None)
    if reasoning is not None:
        normal["reasoning_content"] = reasoning
    calls = normal.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        normal["tool_calls"] = [_normal_call(call) for call in calls]
    return normal


def _normal_call(call: Any) -> dict[str, Any]:
    """A tool call whose arguments are a mapping; OpenAI clients send them as JSON text."""
    if not isinstance(call, Mapping):
        raise GenerationError(
            f"a tool call that is a {type(call).__name__}",
            "a mapping with a function",
            "send tool calls as they came from the reply",
        )
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _normal_call(call["function"])}
    arguments = call.get("arguments", {})
    try:
        mapping = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        mapping = None
    if not isinstance(mapping, Mapping):
        raise GenerationError(
            f"tool call {call.get('name')!r} with arguments {arguments!r}",
            "a mapping, or the JSON text of one",
            "send the arguments as they came from the reply",
        )
    return {**call, "arguments": mapping}
