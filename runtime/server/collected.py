"""One whole reply, added up from its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.server.replies import CallArguments, CallStart, Content, Reason, Reasoning, Step


@dataclass
class CollectedCall:
    """A tool call; `pieces` add up to the JSON text of its arguments."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text of the arguments."""
        return "".join(self.pieces)


class Collected:
    """Adds up the steps of one reply."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self.calls: list[CollectedCall] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reason: Reason | None = None
        self.stop: str | int | None = None

    @property
    def reasoning(self) -> str:
        """What the model thought."""
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        """The answer's text."""
        return "".join(self._content)

    def message(self) -> dict[str, Any]:
        """The message that a client sends back with its next turn."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            functions = [{"name": call.name, "arguments": call.arguments} for call in self.calls]
            message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
        return message

    def add(self, step: Step) -> None:
        """Takes in what a step adds."""
        self.logprobs += step.logprobs
        for part in step.parts:
            if isinstance(part, Reasoning):
                self._reasoning.append(part.text)
            elif isinstance(part, Content):
                self._content.append(part.text)
            elif isinstance(part, CallStart):
                self.calls.append(CollectedCall(part.id, part.name))
            elif isinstance(part, CallArguments):
                self.calls[part.call].pieces.append(part.text)
        if step.end is not None:
            self.reason, self.stop = step.end.reason, step.end.stop
