"""deltart generate: text from an artifact, streamed to the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.reply_screen import ReplyScreen
from deltart.errors import GenerationError
from deltart.runtime.text.reply import opens_thinking, parse_reply
from deltart.runtime.text.tool_arguments import tool_schema

if TYPE_CHECKING:
    from deltart.runtime.generate import Generation
    from deltart.runtime.sampling.params import SamplingParams
    from deltart.runtime.text.tokenizer import Tokenizer

# flag, type, help: the flags that override a field of SamplingParams.
SAMPLING = (
    ("temperature", float, "0 is greedy"),
    ("top_p", float, "nucleus probability"),
    ("top_k", int, "0 keeps all"),
    ("min_p", float, "relative to the most probable token"),
    ("presence_penalty", float, "once per token already generated"),
    ("frequency_penalty", float, "per occurrence already generated"),
    ("repetition_penalty", float, "over prompt and generated tokens"),
    ("seed", int, "makes the draws repeatable"),
    ("max_new_tokens", int, "default 512"),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate", help="generate text from an artifact", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by 'deltart export'")
    parser.add_argument("prompt", help="text to continue, or with --chat a message; - reads standard input")
    chat = parser.add_argument_group("chat")
    chat.add_argument("--chat", action="store_true", help="wrap the prompt in the checkpoint's chat template")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="ask the template for an answer with or without thinking (default: what the template does unasked)",
    )
    chat.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tool schemas")
    sampling = parser.add_argument_group("sampling (defaults: the checkpoint's generation_config.json)")
    for name, kind, text in SAMPLING:
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(), help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="stop before this string; may be repeated")
    sampling.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-sequence token")
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--target",
        choices=["auto", "tensorrt", "ort", "portable"],
        default="auto",
        help="what runs the graph; auto is TensorRT where there are plans and a GPU, else ONNX Runtime",
    )
    run_group.add_argument(
        "--weights",
        choices=["folded", "mapped"],
        default="folded",
        help="folded: converted to f32 at load, fast; mapped: converted at use, little memory. Both are exact",
    )
    run_group.add_argument("--threads", type=int, default=0, help="CPU threads; 0 lets ONNX Runtime choose")
    run_group.add_argument("--plugins", type=Path, metavar="FILE", help="TensorRT: C++ plugin library")
    run_group.add_argument("--json", action="store_true", help="print one JSON object at the end instead of streaming")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Generate and print."""
    from deltart.runtime.backends.choose import open_backend
    from deltart.runtime.generate import Generator
    from deltart.runtime.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(arguments.artifact)
    tools = _read_tools(arguments.tools)
    prompt = _prompt(arguments, tools)
    params = _params(arguments, tokenizer)
    backend = open_backend(
        arguments.artifact, arguments.target, arguments.weights, arguments.threads, arguments.plugins
    )
    generation = Generator(backend, tokenizer).generate(prompt, params)
    if arguments.json:
        for _ in generation:
            pass
        print(json.dumps(_as_json(generation, prompt, tools, chat=arguments.chat), ensure_ascii=False))
    else:
        _show(generation, ReplyScreen(tools, opens_thinking(prompt)) if arguments.chat else None)
        print(_rates(generation), file=sys.stderr)


def _show(generation: Generation, screen: ReplyScreen | None) -> None:
    """Print the text while it comes, a chat's reply in its parts."""
    for piece in generation:
        if screen:
            screen.push(piece)
        else:
            print(piece, end="", flush=True)
    if screen:
        screen.finish()
    else:
        print()


def _prompt(arguments: argparse.Namespace, tools: list[dict[str, Any]]) -> str:
    text = sys.stdin.read() if arguments.prompt == "-" else str(arguments.prompt)
    if not arguments.chat:
        if arguments.system or arguments.tools or arguments.thinking is not None:
            raise GenerationError("--system, --tools, --thinking or --no-thinking without --chat", hint="add --chat")
        return text
    from deltart.runtime.text.chat import ChatTemplate

    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages.append({"role": "user", "content": text})
    template = ChatTemplate.from_folder(arguments.artifact)
    return template.render(messages, tools=tools or None, enable_thinking=arguments.thinking)


def _read_tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise GenerationError(f"--tools {path}: {error}", "a JSON list of tool schemas") from None
    if not isinstance(tools, list):
        raise GenerationError(f"--tools {path} holds a {type(tools).__name__}", "a JSON list of tool schemas")
    for tool in tools:
        tool_schema(tool)
    return tools


def _params(arguments: argparse.Namespace, tokenizer: Tokenizer) -> SamplingParams:
    from deltart.runtime.sampling.params import SamplingParams

    given = {name: getattr(arguments, name) for name, _, _ in SAMPLING if getattr(arguments, name) is not None}
    given["ignore_eos"] = arguments.ignore_eos
    if arguments.stop:
        given["stop"] = tuple(arguments.stop)
    return replace(SamplingParams.from_generation_config(tokenizer.generation_config), **given)


def _as_json(generation: Generation, prompt: str, tools: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
    timings = generation.timings
    result: dict[str, Any] = {
        "text": generation.text,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason,
        "timings": asdict(timings) | {"prefill_rate": timings.prefill_rate, "decode_rate": timings.decode_rate},
    }
    if chat:
        result["reply"] = asdict(parse_reply(generation.text, tools, thinking=opens_thinking(prompt)))
    return result


def _rates(generation: Generation) -> str:
    timings = generation.timings
    return (
        f"[{timings.prompt_tokens} prompt tokens at {timings.prefill_rate:.0f} tok/s, "
        f"{timings.new_tokens} new at {timings.decode_rate:.0f} tok/s, {generation.finish_reason}]"
    )
