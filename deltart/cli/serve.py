"""deltart serve: an artifact behind OpenAI's and Anthropic's HTTP APIs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.bounds import json_object, positive, real, whole
from deltart.errors import GenerationError, MissingDependencyError

if TYPE_CHECKING:
    from deltart.runtime.engine import Engine
    from deltart.runtime.server.settings import Settings

MIB = 1 << 20


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="serve an artifact over OpenAI's and Anthropic's HTTP APIs",
        description="Serve an artifact over OpenAI's and Anthropic's HTTP APIs, with a chat page at /.",
    )
    parser.add_argument("artifact", type=Path, metavar="DIR", help="folder written by deltart export")
    _network(parser.add_argument_group("network"))
    _model(parser.add_argument_group("model"))
    _limits(parser.add_argument_group("limits"))
    _observation(parser.add_argument_group("observation"))
    parser.set_defaults(run=run, extra="serve")


def _network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    group.add_argument("--port", type=whole(0, 65535), default=8000, help="0 takes a free one")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="accepted key; repeatable; else $DELTART_API_KEY, else none"
    )
    group.add_argument("--allowed-origins", nargs="+", default=[], metavar="ORIGIN", help="web origins for CORS")
    group.add_argument("--allowed-media-hosts", nargs="+", default=[], metavar="HOST", help="hosts of image URLs")
    group.add_argument("--replicas", type=whole(1, 1024), metavar="N", help="N engines on Ray Serve (extra: ray)")
    group.add_argument(
        "--drain-seconds", type=real(0, 1e6), default=60.0, help="how long requests may go on after SIGTERM"
    )


def _model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="names that clients may use (default: DIR's)"
    )
    group.add_argument(
        "--max-model-len", type=positive, metavar="N", help="longest prompt and reply together, in tokens"
    )
    group.add_argument(
        "--slots",
        "--max-num-seqs",
        type=whole(1, 1024),
        default=8,
        metavar="N",
        help="replies that are written at once",
    )
    group.add_argument("--queue", type=positive, default=1024, metavar="N", help="requests that may wait")
    group.add_argument("--draft-tokens", type=whole(0, 64), metavar="N", help="MTP drafts a step (default: what pays)")
    group.add_argument("--cache-mb", type=whole(0, 2**31 - 1), metavar="N", help="prefix cache; 0 for none")
    group.add_argument("--memory-mb", type=positive, metavar="N", help="memory that the engine may use")
    group.add_argument(
        "--target",
        default="auto",
        choices=["auto", "native", "ort", "portable", "tensorrt"],
        help="what runs the graph",
    )
    group.add_argument("--weights", choices=["folded", "mapped"], default="folded", help="see deltart generate")
    group.add_argument(
        "--threads", type=whole(0, 1024), default=0, metavar="N", help="CPU threads; 0 lets ONNX Runtime choose"
    )
    group.add_argument("--plugins", type=Path, metavar="FILE", help="TensorRT: C++ plugin library")
    group.add_argument(
        "--default-chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="that requests may override, such as '{\"preserve_thinking\": true}', good for agents",
    )


def _limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-body-mb", type=whole(1, 4096), default=64, metavar="N", help="largest body of a request")
    group.add_argument("--max-tokens", type=positive, metavar="N", help="longest reply, whatever a request asks for")
    group.add_argument("--request-seconds", type=real(0.001, 1e9), metavar="S", help="a request ends after this long")


def _observation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log-requests", action="store_true", help="one JSON line for each, on stderr")
    group.add_argument("--log-content", action="store_true", help="write prompts into those lines too")
    group.add_argument("--debug", action="store_true", help="log fields of requests that are not known here")
    group.add_argument("--otlp-traces-endpoint", metavar="URL", help="OpenTelemetry collector (extra: trace)")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    settings = _settings(arguments)
    _logging(arguments)
    if arguments.replicas is not None:
        from deltart.runtime.server.replicas import serve_replicas

        def ready(url: str) -> None:
            print(f"deltart: serving {settings.names[0]} on {arguments.replicas} replicas at {url}", flush=True)

        serve_replicas(arguments.replicas, engine_arguments(arguments), settings, arguments.host, arguments.port, ready)
        return
    _serve(arguments, settings)


def _serve(arguments: argparse.Namespace, settings: Settings) -> None:
    try:
        from deltart.runtime.server.app import make_app
        from deltart.runtime.server.lifecycle import bind, serve
        from deltart.runtime.server.service import Service
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed", "what deltart serve needs", "pip install 'deltart[serve]'"
        ) from error

    listener = bind(arguments.host, arguments.port)
    engine = _open(arguments)
    print(engine.plan, file=sys.stderr)
    service = Service(engine, settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def ready() -> None:
        print(f"deltart: serving {settings.names[0]} at {url}", flush=True)

    try:
        serve(make_app(service), service, listener, arguments.drain_seconds, ready)
    finally:
        service.close()
        engine.close()


def _open(arguments: argparse.Namespace) -> Engine:
    from deltart.runtime.engine import Engine

    return Engine.open(**engine_arguments(arguments))


def engine_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of Engine.open."""
    from deltart.runtime.engine import EngineOptions

    options = EngineOptions(
        slots=arguments.slots,
        max_model_len=arguments.max_model_len,
        draft_tokens=arguments.draft_tokens,
        cache_bytes=_bytes(arguments.cache_mb),
        memory_bytes=_bytes(arguments.memory_mb),
        queue=arguments.queue,
    )
    given = {name: getattr(arguments, name) for name in ("artifact", "target", "weights", "threads", "plugins")}
    return given | {"options": options}


def _settings(arguments: argparse.Namespace) -> Settings:
    from deltart.runtime.server.settings import Limits, Settings

    defaults = arguments.default_chat_template_kwargs
    if not isinstance(defaults, dict):
        raise GenerationError("--default-chat-template-kwargs that is no object", "a JSON object", '{"NAME": true}')
    keys = arguments.api_key or [key for key in [os.environ.get("DELTART_API_KEY")] if key]
    return Settings(
        names=tuple(arguments.served_model_name or [arguments.artifact.resolve().name]),
        api_keys=tuple(keys),
        template_defaults=defaults,
        allowed_origins=tuple(arguments.allowed_origins),
        media_hosts=tuple(host.lower() for host in arguments.allowed_media_hosts),
        log_content=arguments.log_content,
        request_seconds=arguments.request_seconds,
        traces_endpoint=arguments.otlp_traces_endpoint,
        limits=Limits(body_bytes=arguments.max_body_mb * MIB, max_tokens=arguments.max_tokens),
    )


def _logging(arguments: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("deltart.server").setLevel(logging.DEBUG if arguments.debug else logging.INFO)
    if arguments.log_requests or arguments.log_content:
        logging.getLogger("deltart.requests").setLevel(logging.INFO)


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB
