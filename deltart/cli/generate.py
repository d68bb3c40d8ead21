"""deltart generate: text from an artifact, streamed to the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli import cache_option
from deltart.cli.reply_screen import ReplyScreen
from deltart.cli.run_options import (
    add_engine,
    add_media,
    add_sampling,
    open_engine,
    params,
    processing,
    thinking_options,
)
from deltart.cli.streams import print_json, read_stdin, shown_to_people
from deltart.errors import GenerationError
from deltart.json_files import parse_json, shown
from deltart.runtime.text.reply import parse_reply
from deltart.runtime.text.tool_arguments import tool_schema
from deltart.text_files import read_bytes

if TYPE_CHECKING:
    from deltart.runtime.conversation import Prompt
    from deltart.runtime.handle import Completion, Handle


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate", help="generate text from an artifact", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by `deltart export`")
    parser.add_argument("prompt", help="text to continue, or with --chat a message; - reads standard input")
    chat = parser.add_argument_group("chat")
    chat.add_argument("--chat", action="store_true", help="wrap the prompt in the checkpoint's chat template")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="switch the template's thinking on or off (default: the template's choice)",
    )
    chat.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tool schemas")
    chat.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture before the message; may be repeated; implies --chat",
    )
    chat.add_argument("--video", type=Path, action="append", default=[], metavar="FILE", help="a video, likewise")
    add_media(parser)
    add_sampling(parser)
    run_group = add_engine(parser, slots=1)
    run_group.add_argument("--json", action="store_true", help="print one JSON object at the end instead of streaming")
    cache_option.add(parser)
    parser.set_defaults(run=run, extra="cpu")


def run(arguments: argparse.Namespace) -> None:
    """Generate and print."""
    from deltart.runtime.conversation import Chats

    tools = _read_tools(arguments.tools)
    chat = bool(arguments.chat or arguments.image or arguments.video)
    if not chat and (arguments.system or arguments.tools or arguments.thinking is not None):
        raise GenerationError("--system, --tools, --thinking or --no-thinking without --chat", hint="add --chat")
    text = read_stdin() if arguments.prompt == "-" else str(arguments.prompt)
    messages = _messages(arguments, text) if chat else []
    with open_engine(arguments, cache_bytes=0) as engine:
        chosen, prompt = params(arguments, engine.defaults), None
        if chat:
            options = thinking_options(arguments)
            prompt = Chats(engine).prompt(messages, tools, processing(arguments), **options)
        request = prompt.request(chosen) if prompt else engine.request(text, chosen)
        handle = engine.submit(request)
        if arguments.json:
            print_json(_as_json(handle.result()[0], prompt, tools))
            return
        _show(handle, ReplyScreen(tools, prompt.thinking) if prompt else None)


def _show(handle: Handle, screen: ReplyScreen | None) -> None:
    """Print the text while it comes, a chat's reply in its parts; then how fast it came."""
    reason = None
    for delta in handle:
        reason = delta.finish_reason
        if screen:
            screen.push(delta.text)
        elif delta.text:
            print(shown_to_people(delta.text), end="", flush=True)
    if screen:
        screen.finish()
    else:
        print()
    usage = handle.usage
    print(
        f"[{usage.prompt_tokens} prompt tokens at {usage.prefill_rate:.0f} tok/s, "
        f"{usage.completion_tokens} new at {usage.decode_rate:.0f} tok/s, {reason}]",
        file=sys.stderr,
    )


def _messages(arguments: argparse.Namespace, text: str) -> list[dict[str, Any]]:
    """The conversation so far: the system message, and the user's with its pictures."""
    from deltart.runtime.vision.images import open_media

    parts = [{"type": kind, kind: path} for kind in ("image", "video") for path in getattr(arguments, kind)]
    for part in parts:  # before a model is loaded
        open_media(part[part["type"]]).close()
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    return [*messages, {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}]


def _read_tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    tools = parse_json(read_bytes(path, GenerationError), f"--tools {path}", GenerationError)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise GenerationError(f"--tools {path} holds {shown(tools)}", "a JSON list of tool schemas")
    for tool in tools:
        tool_schema(tool)
    return tools


def _as_json(completion: Completion, prompt: Prompt | None, tools: list[dict[str, Any]]) -> dict[str, Any]:
    usage = completion.usage
    result: dict[str, Any] = {
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "usage": asdict(usage) | {"prefill_rate": usage.prefill_rate, "decode_rate": usage.decode_rate},
    }
    if prompt is not None:
        result["reply"] = asdict(parse_reply(completion.text, tools, thinking=prompt.thinking))
    return result
