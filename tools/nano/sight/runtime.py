"""The seeing nano through DeltaRT: its replies to the same conversations, given as arrays of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine
from deltart.runtime.sampling.params import SamplingParams
from tools.nano.evaluate import Reply
from tools.nano.heldout import Question
from tools.nano.sight import media
from tools.nano.sight.reference import MAX_NEW_TOKENS
from tools.nano.sight.tasks import FPS

GREEDY = SamplingParams(temperature=0, max_new_tokens=MAX_NEW_TOKENS)


def messages(question: Question) -> list[dict[str, Any]]:
    """The conversation with pixels in the place of scenes, as the Python API takes them."""
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [_shown(part) for part in message["content"]]}
        for message in question.messages
    ]


def replies(engine: Engine, questions: Sequence[Question]) -> tuple[list[Reply], list[list[int]]]:
    """(replies, their tokens with the stop token); the questions are sent all at once, as many as the engine queues."""
    chats, texts, answered = Chats(engine), [], []
    prompts = (chats.prompt(messages(q), q.tools or None, enable_thinking=q.enable_thinking) for q in questions)
    handles = [engine.submit(prompt.request(GREEDY)) for prompt in prompts]
    for (completion,) in (handle.result() for handle in handles):
        texts.append(Reply(completion.text, completion.finish_reason == "stop"))
        answered.append(completion.drawn)
    return texts, answered


def _shown(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    shown = {"type": part["type"], part["type"]: media.pixels(part)}
    return shown | ({"fps": FPS} if part["type"] == "video" else {})
