"""Flags that the commands which run an artifact share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.bounds import positive, real, whole

if TYPE_CHECKING:
    from deltart.runtime.engine import Engine
    from deltart.runtime.sampling.params import SamplingParams
    from deltart.runtime.vision.load import Processing

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
    ("max_new_tokens", int, "longest reply in tokens (default 512)"),
    ("min_tokens", int, "shortest reply in tokens"),
)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Flags of SamplingParams."""
    group = parser.add_argument_group("sampling (defaults: the checkpoint's generation_config.json)")
    for name, kind, text in SAMPLING:
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(), help=text)
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before this string; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-sequence token")


def add_media(parser: argparse.ArgumentParser) -> None:
    """Flags of pictures and videos."""
    group = parser.add_argument_group("pictures (of an artifact with a vision graph)")
    group.add_argument(
        "--max-pixels", type=positive, metavar="N", help="most pixels of a picture or video (default: the checkpoint's)"
    )
    group.add_argument(
        "--fps",
        type=real(0.001, 1000),
        metavar="N",
        help="frames of a video looked at a second (default: the checkpoint's)",
    )


def processing(arguments: argparse.Namespace) -> Processing:
    """How pictures and videos are to be read."""
    from deltart.runtime.vision.load import Processing

    return Processing(max_pixels=arguments.max_pixels, fps=arguments.fps)


def add_engine(parser: argparse.ArgumentParser, slots: int) -> argparse._ArgumentGroup:
    """Flags of what runs the model and of EngineOptions."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--target",
        choices=["auto", "tensorrt", "native", "ort", "portable"],
        default="auto",
        help="what runs the graph; auto is an engine where there are plans and a GPU, TensorRT's before native ones, "
        "else ONNX Runtime",
    )
    group.add_argument(
        "--weights",
        choices=["folded", "mapped"],
        default="folded",
        help="folded: converted to f32 at load, fast; mapped: converted at use, little memory. Both are exact",
    )
    group.add_argument("--threads", type=whole(0, 1024), default=0, help="CPU threads; 0 lets ONNX Runtime choose")
    group.add_argument("--plugins", type=Path, metavar="FILE", help="TensorRT: C++ plugin library")
    group.add_argument(
        "--draft-tokens",
        type=whole(0, 64),
        metavar="N",
        help="tokens that the MTP head drafts per step (default: as many as pay)",
    )
    group.add_argument(
        "--max-model-len", type=positive, metavar="N", help="longest prompt and reply together, in tokens"
    )
    group.set_defaults(slots=slots)
    return group


def params(arguments: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """The checkpoint's own parameters with what the flags say."""
    given = {name: getattr(arguments, name) for name, _, _ in SAMPLING if getattr(arguments, name) is not None}
    if arguments.stop:
        given["stop"] = tuple(arguments.stop)
    return replace(defaults, **given, ignore_eos=arguments.ignore_eos)


def thinking_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What to ask the chat template for: nothing where the flag was not given, so that its own default holds."""
    return {} if arguments.thinking is None else {"enable_thinking": arguments.thinking}


def open_engine(arguments: argparse.Namespace, **options: Any) -> Engine:
    """The engine that the flags ask for; `options` are further fields of EngineOptions."""
    from deltart.runtime.engine import Engine, EngineOptions

    return Engine.open(
        arguments.artifact,
        target=arguments.target,
        weights=arguments.weights,
        threads=arguments.threads,
        plugins=arguments.plugins,
        options=EngineOptions(
            slots=arguments.slots, max_model_len=arguments.max_model_len, draft_tokens=arguments.draft_tokens, **options
        ),
    )
