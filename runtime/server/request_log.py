"""One JSON line for each request: what it was, how long it took, how many tokens; content only where asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Scope

from deltart.runtime.server.job import Job

log = logging.getLogger("deltart.requests")


def write_log(scope: Scope, status: int, seconds: float, request_id: str, notes: Mapping[str, object]) -> None:
    """Writes the line of a request that is over. `notes` are further fields, and a "job" whose figures are added."""
    if not log.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "id": request_id,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 6),
    }
    jobs = notes.get("jobs")
    fields |= {name: value for name, value in notes.items() if name != "jobs"}
    fields |= _figures(jobs) if isinstance(jobs, list) and jobs else {}
    log.info(msgspec.json.encode(fields).decode())


def note_job(request: Request, job: Job, content: bool) -> None:
    """Has the request's line tell of `job`, its prompt included where `content` says so."""
    notes: dict[str, Any] = request.state.log
    notes.setdefault("jobs", []).append(job)
    if content:
        notes.setdefault("prompts", []).append(list(job.prepared.request.ids))


def _figures(jobs: list[Job]) -> dict[str, Any]:
    usages = [job.usage for job in jobs]
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "finish_reasons": [reply.reason for job in jobs for reply in job.replies],
        "queue_seconds": round(max(usage.queue_seconds for usage in usages), 6),
        "first_token_seconds": round(max(usage.first_token_seconds for usage in usages), 6),
    }
