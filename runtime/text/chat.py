"""The checkpoint's chat template: messages and tools to the prompt text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from deltart.errors import ArtifactError, GenerationError
from deltart.runtime.text.template_limits import BoundedEnvironment, TemplateTooCostly, render
from deltart.runtime.text.tool_arguments import tool_schema
from deltart.runtime.text.vocabulary import read_json, token_text
from deltart.text_files import read_text

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

# Names under which clients send an assistant's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MEDIA = ("image", "image_url", "input_image", "video", "video_url", "input_video", "audio", "input_audio")


class ChatTemplate:
    """A checkpoint's template, or several by name. They are foreign code, so they run in a bounded sandbox.

    Args:
        source: the template, written for the environment of transformers' apply_chat_template; or a template for
            each name, of which "tool_use" is taken with tools, where it is there, and else "default".
        special_tokens: texts such as eos_token that the template may use.
        takes_media: the model can see images and videos.

    Raises:
        ArtifactError: a template does not compile, or none of them is the default.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        takes_media: bool = True,
    ) -> None:
        self._special_tokens, self._takes_media = dict(special_tokens or {}), takes_media
        sources = {"default": source} if isinstance(source, str) else source
        self._templates = {name: _compiled(text) for name, text in sources.items()}
        if not {"default", "tool_use"} & {*self._templates}:
            raise ArtifactError(
                f"the chat templates are named {', '.join(sorted(self._templates)) or 'nothing'}",
                "one named 'default'",
                "name the one to use 'default', or put it into chat_template.jinja",
            )

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a folder has a template, usable or not."""
        return bool(_sources(folder))

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """The templates of chat_template.jinja and additional_chat_templates, else those of tokenizer_config.json.

        Raises:
            ArtifactError: there are none, or one does not compile.
        """
        folder = Path(folder)
        sources = _sources(folder)
        if not sources:
            raise ArtifactError(
                f"{folder} has no chat template",
                "chat_template.jinja, or a chat_template text in tokenizer_config.json",
                "copy chat_template.jinja from the vendor's checkpoint, or generate without chat",
            )
        config = read_json(folder / "tokenizer_config.json")
        texts = {name: token_text(config[name]) for name in config if name.endswith("_token")}
        special_tokens = {name: text for name, text in texts.items() if text is not None}
        return cls(sources, special_tokens, _takes_media(folder))

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
        enable_thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`, as transformers' apply_chat_template writes it.

        Fields that are null count as absent, reasoning may be called `reasoning_content`, `thinking` or
        `reasoning`, and the arguments of a tool call may be a mapping or the JSON text of one. What the template
        does not know of real clients' messages, `messages.normalized` rewrites.

        Args:
            messages: mappings with `role`, `content` and what else the template reads, oldest first.
            tools: schemas of the functions on offer.
            enable_thinking: leave the reply open inside <think>, rather than with an empty thought. None is the
                template's own default, which differs between the sizes of this family.
            preserve_thinking: keep the reasoning of all replies, not only of those since the last query. None is
                the template's own default.
            add_generation_prompt: end with the opening of the assistant's reply.
            variables: other variables that the template may read.

        Raises:
            GenerationError: messages that the template or the model refuses, malformed ones, tools that are none,
                or a template that runs for too long or writes too much.
        """
        for what, given in (("messages", messages), ("tools", tools or ())):
            if not isinstance(given, (list, tuple)):
                raise GenerationError(f"{what} that are a {type(given).__name__}", "a list of mappings", "send a list")
        normal = [_normal(message) for message in messages]
        if not self._takes_media:
            _refuse_media(normal)
        for tool in tools or ():
            tool_schema(tool)
        asked = {"enable_thinking": enable_thinking, "preserve_thinking": preserve_thinking}
        template = self._templates.get("tool_use") if tools is not None else None
        try:
            return render(
                template or self._templates.get("default") or self._templates["tool_use"],
                self._special_tokens
                | dict(variables or {})
                | {name: value for name, value in asked.items() if value is not None}
                | {"messages": normal, "tools": None if tools is None else list(tools)}
                | {"add_generation_prompt": add_generation_prompt},
            )
        except TemplateTooCostly as error:
            raise GenerationError(
                f"the chat template was stopped: {error}",
                "a template of the vendor's",
                "send fewer messages, or replace chat_template.jinja by the vendor's",
            ) from error
        except Exception as error:  # a template can fail in as many ways as Python
            raise GenerationError(
                f"the chat template refused the messages: {error}",
                "roles and contents that this checkpoint's template accepts",
                "change the messages; chat_template.jinja says what it takes",
            ) from error


def _compiled(source: str) -> jinja2.Template:
    try:
        return BoundedEnvironment().from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        raise ArtifactError(
            f"the chat template does not compile: {error}",
            "a jinja2 template for transformers",
            "copy chat_template.jinja from the vendor's checkpoint",
        ) from error


def _sources(folder: Path) -> dict[str, str]:
    return _files(folder) or _inline(read_json(folder / "tokenizer_config.json").get("chat_template"))


def _files(folder: Path) -> dict[str, str]:
    """The templates in files of their own, by name."""
    paths = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        paths["default"] = folder / "chat_template.jinja"
    return {name: _read(path) for name, path in paths.items()}


def _inline(template: Any) -> dict[str, str]:
    """The templates in tokenizer_config.json: a text, or a list of names and texts."""
    if isinstance(template, str):
        return {"default": template}
    entries = template if isinstance(template, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    return {str(name): text for name, text in named.items() if isinstance(text, str)}


def _takes_media(folder: Path) -> bool:
    """Whether an artifact has a vision graph, or a checkpoint a vision tower; unknown counts as yes."""
    if (folder / "manifest.json").is_file():
        graphs = read_json(folder / "manifest.json").get("graphs")
        return isinstance(graphs, dict) and "vision" in graphs
    return not (folder / "config.json").is_file() or "vision_config" in read_json(folder / "config.json")


def _read(path: Path) -> str:
    return read_text(path, ArtifactError)


def _refuse_media(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        for kind in _media(message.get("content")):
            raise GenerationError(
                f"message {number} holds a part of type {kind!r}",
                "text: this model has no vision graph",
                "leave the part out, or describe it in words",
            )


def _media(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, (list, tuple)) else ():
        if isinstance(part, Mapping):
            yield from (kind for kind in _MEDIA if part.get("type") == kind or kind in part)


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
    arguments = call.get("arguments")
    try:
        mapping = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        mapping = {} if mapping is None else mapping
    except (ValueError, RecursionError):
        mapping = arguments
    if not isinstance(mapping, Mapping):
        raise GenerationError(
            f"tool call {call.get('name')!r} with arguments {arguments!r}",
            "a mapping, or the JSON text of one",
            "send the arguments as they came from the reply",
        )
    return {**call, "arguments": mapping}
