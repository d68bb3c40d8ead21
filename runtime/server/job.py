"""One request in the engine's hands."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable

from deltart.errors import GenerationError
from deltart.runtime.conversation import Chats
from deltart.runtime.handle import Handle
from deltart.runtime.sequence import Usage
from deltart.runtime.server.collected import Collected
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.prepare import Prepared
from deltart.runtime.server.replies import ReplyReader, Step


class Job:
    """A submitted request: iterate `steps` once, then `close`.

    Args:
        prepared: how its replies are to be read.
        handle: of the engine.
        done: called once, when it is closed.

    Attributes:
        created: seconds since the epoch.
        key: unique, for the ids of replies.
        replies: so far.
    """

    def __init__(self, prepared: Prepared, handle: Handle, done: Callable[[Job], None]) -> None:
        self.prepared, self.handle = prepared, handle
        self.created, self.key = int(time.time()), uuid.uuid4().hex
        self.replies = [Collected() for _ in range(prepared.request.n)]
        self._tokens: list[list[int]] = [[] for _ in self.replies]
        self._done = done
        self._closed = False

    @property
    def usage(self) -> Usage:
        """Tokens and times so far."""
        return self.handle.usage

    async def steps(self) -> AsyncIterator[Step]:
        """What the engine adds to the replies, in the order it comes.

        Raises:
            RequestError: 500 when the engine failed, 503 or 504 when a reply was cut.
        """
        plan = self.prepared
        readers = [ReplyReader(i, plan) for i in range(plan.request.n)]
        try:
            async for delta in self.handle:
                step = readers[delta.index].read(delta)
                self.replies[step.index].add(step)
                self._tokens[step.index] += delta.tokens
                if step.parts or step.logprobs or step.end:
                    yield step
                if all(reader.cut for reader in readers):
                    self.handle.cancel()
        except GenerationError as error:
            raise RequestError(f"the engine failed: {error.found}", "", "see the server's log", status=500) from error

    async def finish(self) -> None:
        """Waits until every reply is whole, and closes; raises as `steps` does."""
        try:
            async for _ in self.steps():
                pass
        finally:
            self.close()

    def remember(self, chats: Chats) -> None:
        """Has `chats` keep the tokens of whole replies, for when their messages come back."""
        prompt = self.prepared.prompt
        for reply, tokens in zip(self.replies, self._tokens, strict=True):
            if prompt is not None and reply.reason in ("stop", "tool_calls"):
                chats.remember(prompt, tokens, reply.message())

    def close(self) -> None:
        """Cancels what still runs and reports the job as done; idempotent."""
        if not self._closed:
            self._closed = True
            self.handle.cancel()
            self._done(self)
