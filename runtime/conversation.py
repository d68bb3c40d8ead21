"""Chats with an engine: messages to a prompt, and a reply to its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.engine import Engine
from deltart.runtime.handle import Completion
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request
from deltart.runtime.text.chat import Message, Tool
from deltart.runtime.text.history import TokenHistory
from deltart.runtime.text.reply import Reply, opens_thinking, parse_reply
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import LoadMedium, Processing, load_medium
from deltart.runtime.vision.medium import Span
from deltart.runtime.vision.parts import load_media, media_parts, without_sources
from deltart.runtime.vision.prompt import Escape, encode_prompt


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        messages, tools, options: what it was rendered from, of pictures only that they are there; `options` are the
            template's.
        ids: its tokens, earlier replies as they were generated.
        thinking: it ends inside <think>.
        media: where its pictures and videos lie.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    options: Mapping[str, Any]
    ids: tuple[int, ...]
    thinking: bool
    media: tuple[Span, ...] = ()

    def request(self, params: SamplingParams) -> Request:
        """A request for one reply to it."""
        return Request(self.ids, params, thinking=self.thinking, media=self.media)


@dataclass(frozen=True)
class ChatReply:
    """A reply's parts, and the completion that they were read from."""

    reply: Reply
    completion: Completion

    def message(self) -> dict[str, Any]:
        """The reply as a message for the next turn, its reasoning included."""
        message: dict[str, Any] = {"role": "assistant", "content": self.reply.content}
        if self.reply.reasoning:
            message["reasoning_content"] = self.reply.reasoning
        if self.reply.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.reply.tool_calls
            ]
        return message


class Chats:
    """Conversations with one engine's model. Thread-safe.

    Raises:
        GenerationError: the artifact has no chat template.
    """

    def __init__(self, engine: Engine, load: LoadMedium = load_medium) -> None:
        if engine.template is None:
            raise GenerationError(
                "the artifact has no chat template",
                "chat_template.jinja beside its tokenizer",
                "export the vendor's checkpoint, or generate from plain text",
            )
        self.engine = engine
        self._template, self._load = engine.template, load
        self._history = TokenHistory(engine.tokenizer)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, processing: Processing | None = None,
        media_limits: MediaLimits | None = None, **options: Any,
    ) -> Prompt:  # fmt: skip
        """The prompt for the assistant's next message; `options` as `ChatTemplate.render` takes them.

        Args:
            messages: content may be a list of parts, of which {"type": "image", "image": ...} holds a path, the bytes
                of a file, a data URL, a PIL image or an array, and {"type": "video", "video": ...} a path, bytes, or
                frames, with their "fps".
            processing: what is different about the reading of pictures and videos.
            media_limits: bounds on each of them.

        Raises:
            GenerationError: messages that the template refuses, or a picture that can't be read.
            MissingDependencyError: a video's file, without PyAV.
        """
        vision = self.engine.manifest.vision
        if vision is None:
            text = self._template.render(messages, tools=tools or None, **options)
            return Prompt(
                tuple(messages), tuple(tools or ()), options, tuple(self._history.encode(text)), opens_thinking(text)
            )
        shown = without_sources(messages)
        escape = Escape(shown, tools, options)
        text = self._template.render(escape.hide(shown), tools=escape.hide(tools) or None, **escape.hide(options))
        media = load_media(tuple(media_parts(messages)), vision, processing, media_limits, self._load)
        pieces = (
            part
            for piece in self._history.pieces(text)
            for part in (escape.split(piece) if isinstance(piece, str) else [piece])
        )
        ids, spans = encode_prompt(pieces, media, self.engine.tokenizer, vision.wrapper, vision.tokens)
        return Prompt(tuple(shown), tuple(tools or ()), options, ids, opens_thinking(text), spans)

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, params: SamplingParams | None = None,
        **options: Any,
    ) -> ChatReply:  # fmt: skip
        """The assistant's next message, whole; `options` and errors as those of `prompt` and `Engine.submit`."""
        prompt = self.prompt(messages, tools, **options)
        chosen = self.engine.defaults if params is None else params
        return self.read(prompt, self.engine.submit(prompt.request(chosen)).result()[0])

    def read(self, prompt: Prompt, completion: Completion) -> ChatReply:
        """The parts of a reply to `prompt`, which is remembered for the turns after it."""
        parts = parse_reply(completion.text, prompt.tools, thinking=prompt.thinking)
        reply = ChatReply(parts, completion)
        self.remember(prompt, completion.tokens, reply.message())
        return reply

    def remember(self, prompt: Prompt, tokens: Sequence[int], message: Message) -> None:
        """Note the tokens of a reply under the message that its client will send back."""
        try:
            rendered = self._template.render(
                [*prompt.messages, message], tools=prompt.tools or None,
                **{**prompt.options, "add_generation_prompt": False},
            )  # fmt: skip
        except GenerationError:  # a reply that its own template refuses is not one that can come back
            return
        self._history.remember(rendered, prompt.ids, tokens, prompt.tools)
