"""One conversation over many turns: its messages, and a file that it can be saved to and gone on with."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltart.errors import ArtifactError, GenerationError
from deltart.files import write_atomically
from deltart.json_files import parse_json
from deltart.runtime.conversation import ChatReply, Chats
from deltart.runtime.handle import Completion, Handle
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.chat import Message, Tool
from deltart.runtime.text.reply import ContentDelta, Event, ReplyParser
from deltart.runtime.vision.keys import prompt_keys
from deltart.runtime.vision.load import Processing
from deltart.text_files import read_bytes

PREFIX_SUFFIX = ".prefix.safetensors"


class ChatSession:
    """A conversation with the model of `chats`.

    Args:
        system: the system message, if any.
        tools: functions on offer.
        options: the template's, such as enable_thinking.

    Attributes:
        messages: so far, oldest first.
    """

    def __init__(self, chats: Chats, system: str = "", tools: Sequence[Tool] = (), **options: Any) -> None:
        self._chats, self._system, self._tools, self._options = chats, system, tuple(tools), options
        self.messages: list[Message] = []
        self.last: ChatReply | None = None
        self._processing: Processing | None = None
        self._handle: Handle | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but for the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.last = None

    def say(
        self, text: str, params: SamplingParams, media: Sequence[Mapping[str, Any]] = (),
        processing: Processing | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """Send a user's message; yields the parts of the reply as they come.

        Args:
            media: parts of the message before its text, as `Chats.prompt` takes pictures and videos.
            processing: how they are read, in this turn and the later ones.

        Leaving the loop early ends the reply: what it has said so far stays in the conversation, and if that is nothing
        the message is taken back.

        Raises:
            GenerationError: the message can't be answered; the conversation is as before.
        """
        content: Any = [*media, {"type": "text", "text": text}] if media else text
        messages = [*self.messages, {"role": "user", "content": content}]
        self._processing = processing or self._processing
        prompt = self._chats.prompt(messages, self._tools, self._processing, **self._options)
        parser = ReplyParser(self._tools, prompt.thinking)
        handle = self._chats.engine.submit(prompt.request(params))
        completion, said = Completion(usage=handle.usage), ""
        try:
            for delta in handle:
                completion.add(delta)
                for event in parser.push(delta.text):
                    said += event.text if isinstance(event, ContentDelta) else ""
                    yield event
            yield from parser.finish()
        except BaseException:
            handle.cancel()
            if said:
                self.messages = [*messages, {"role": "assistant", "content": said}]
            raise
        self.last = self._chats.read(prompt, completion)
        self.messages = [*messages, self.last.message()]

    def save(self, path: Path) -> None:
        """Write the conversation to `path`, and the model's state after it beside, if that is kept.

        Of pictures and videos given by path the path is written, of those given as bytes the bytes.

        Raises:
            GenerationError: one was given in another form.
            OSError: there is no room or no permission.
        """
        text = json.dumps(self.messages, ensure_ascii=False, indent=1, default=_stored)
        write_atomically(path, f"{text}\n".encode())
        options = {**self._options, "add_generation_prompt": False}
        prompt = self._chats.prompt(self.messages, self._tools, self._processing, **options)
        self._chats.engine.save_prefix(prompt_keys(prompt.ids, prompt.media), path.with_name(path.name + PREFIX_SUFFIX))

    def load(self, path: Path) -> None:
        """Go on with a saved conversation.

        Raises:
            ArtifactError: `path` is no saved conversation, or its state is of another model.
        """
        messages = parse_json(read_bytes(path, ArtifactError), str(path), ArtifactError)
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ArtifactError(f"{path} is no saved conversation", "a JSON list of messages")
        state = path.with_name(path.name + PREFIX_SUFFIX)
        if state.exists():
            self._chats.engine.load_prefix(state)
        self.messages, self.last = messages, None

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures and videos."""
        return self._chats.engine.sees


def _stored(value: Any) -> str:
    """A picture or video as JSON can hold it."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, bytes):
        return f"data:;base64,{base64.b64encode(value).decode()}"
    raise GenerationError(f"a picture given as a {type(value).__name__}", "a path or bytes", "save it to a file first")
