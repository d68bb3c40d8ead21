"""What an operator decides about a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request may ask; beyond them it is refused, except max_tokens, which is clamped.

    Attributes:
        body_bytes: of a request's body; beyond it 413.
        body_seconds: that a body may take to arrive.
        depth: of nested JSON.
        schema_bytes: of a JSON schema, regular expression or grammar.
        tools: functions on offer.
        choices: replies of one request, `n` times the number of prompts.
        stops: stop strings.
        logprobs: alternatives a token.
        max_tokens: of a reply, whatever was asked; None leaves the engine's context.
        media: images and videos of one request.
        media_bytes: of one of them.
        media_seconds: that fetching one may take.
        image_seconds, video_seconds: that decoding an image or a video may take.
        write_seconds: that a client may leave a full socket unread before it counts as gone.
    """

    body_bytes: int = 64 * MIB
    body_seconds: float = 60.0
    depth: int = 100
    schema_bytes: int = 1 * MIB
    tools: int = 512
    choices: int = 128
    stops: int = 64
    logprobs: int = 20
    max_tokens: int | None = None
    media: int = 64
    media_bytes: int = 20 * MIB
    media_seconds: float = 10.0
    image_seconds: float = 20.0
    video_seconds: float = 30.0
    write_seconds: float = 60.0


@dataclass(frozen=True)
class Settings:
    """How a server presents one engine.

    Attributes:
        names: what clients may call the model; the first is the one that replies carry.
        api_keys: accepted keys; empty accepts everyone.
        template_defaults: options of the chat template that requests may override, such as enable_thinking.
        allowed_origins: web origins besides the server's own that browsers may call from; ("*",) is all.
        media_hosts: hosts that image and video URLs may name; empty: data URLs only.
        keep_alive_seconds: a silent stream gets a comment this often.
        log_content: request logs hold prompts and replies.
        request_seconds: after which a request ends with an error; None never.
        traces_endpoint: URL of an OpenTelemetry collector (OTLP over HTTP); None for no traces.
        limits: of single requests.
    """

    names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    template_defaults: Mapping[str, Any] = field(default_factory=dict)
    allowed_origins: tuple[str, ...] = ()
    media_hosts: tuple[str, ...] = ()
    keep_alive_seconds: float = 10.0
    log_content: bool = False
    request_seconds: float | None = None
    traces_endpoint: str | None = None
    limits: Limits = Limits()
