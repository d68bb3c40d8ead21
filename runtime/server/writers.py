"""A job written in one API's form, whole or as named server-sent events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from deltart.runtime.sequence import Usage
from deltart.runtime.server.job import Job
from deltart.runtime.server.replies import Step
from deltart.runtime.server.stream import event


class Writer(Protocol):
    """Turns a job's steps into an API's objects."""

    def add(self, step: Step) -> Sequence[dict[str, Any]]:
        """The events that `step` makes."""

    def body(self, usage: Usage) -> dict[str, Any]:
        """The whole answer."""


async def whole(job: Job, writer: Writer) -> dict[str, Any]:
    """The answer once it is whole; closes `job`."""
    try:
        async for step in job.steps():
            writer.add(step)
        return writer.body(job.usage)
    finally:
        job.close()


def named(*events: dict[str, Any]) -> bytes:
    """Events as they are sent, each under the name that its type is."""
    return b"".join(event(one, one["type"]) for one in events)
