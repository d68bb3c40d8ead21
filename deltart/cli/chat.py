"""deltart chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli import cache_option
from deltart.cli.run_options import (
    add_engine,
    add_media,
    add_sampling,
    open_engine,
    params,
    processing,
    thinking_options,
)
from deltart.cli.streams import shown_to_people
from deltart.errors import DeltaRTError, GenerationError

if TYPE_CHECKING:
    from deltart.runtime.chat_session import ChatSession
    from deltart.runtime.sampling.params import SamplingParams
    from deltart.runtime.vision.load import Processing

HELP = """\
/reset        begin a new conversation
/image FILE   show a picture with the next message (of models that see), /video FILE a video
/save FILE    keep it, with the model's state, so that it goes on where it was
/load FILE    go on with a saved one
/quit         leave (so does the end of input); Ctrl-C ends a reply"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "chat", help="talk with an artifact's model", description=f"A conversation in the terminal.\n\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("artifact", type=Path, help="folder written by `deltart export`")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="switch the template's thinking on or off (default: the template's choice)",
    )
    parser.add_argument("--preserve-thinking", action="store_true", help="keep earlier thinking in the conversation")
    add_media(parser)
    add_sampling(parser)
    add_engine(parser, slots=1)
    cache_option.add(parser)
    parser.set_defaults(run=run, extra="cpu")


def run(arguments: argparse.Namespace) -> None:
    """Read messages and answer them until the input ends."""
    from deltart.runtime.chat_session import ChatSession
    from deltart.runtime.conversation import Chats

    with open_engine(arguments) as engine:
        options = thinking_options(arguments) | ({"preserve_thinking": True} if arguments.preserve_thinking else {})
        session = ChatSession(Chats(engine), arguments.system, **options)
        Terminal(session, params(arguments, engine.defaults), processing(arguments)).talk()


class Terminal:
    """The conversation's screen: prompts and figures go to a terminal only, so that a pipe gets the replies alone."""

    def __init__(self, session: ChatSession, chosen: SamplingParams, processing: Processing) -> None:
        self._session, self._params, self._processing = session, chosen, processing
        self._media: list[dict[str, Any]] = []  # to go with the next message
        self._shown = sys.stdin.isatty() and sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": lambda _: session.reset(),
            "/image": lambda name: self._attach("image", name),
            "/video": lambda name: self._attach("video", name),
            "/save": lambda name: session.save(_path(name)),
            "/load": lambda name: session.load(_path(name)),
            "/help": lambda _: print(HELP),
        }

    def talk(self) -> None:
        """One line, one message, until the end of input or /quit."""
        if self._shown:
            import readline  # noqa: F401  # gives input() its editing keys

            print(f"{HELP}\n")
        while (line := self._read()) is not None:
            if line.split(" ")[0] == "/quit":
                return
            try:
                self._take(line)
            except (DeltaRTError, OSError) as error:
                print(f"deltart: {error}", file=sys.stderr)

    def _read(self) -> str | None:
        try:
            return input("> " if self._shown else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()
            return ""

    def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name.startswith("/") and name[1:].isalpha():
            raise GenerationError(f"no command {name}", "/reset, /image, /video, /save, /load, /help or /quit")
        elif line.strip():
            self._answer(line)

    def _attach(self, kind: str, name: str) -> None:
        """Show a picture or video with the next message."""
        from deltart.runtime.vision.images import open_media

        if not self._session.sees:
            raise GenerationError(
                f"/{kind}, and the artifact has no vision graph", hint="export it with its vision tower"
            )
        path = _path(name)
        open_media(path).close()
        self._media.append({"type": kind, kind: path})

    def _answer(self, text: str) -> None:
        from deltart.runtime.text.reply import ContentDelta, ReasoningDelta

        thinking, media = False, self._media
        self._media = []
        try:
            for event in self._session.say(text, self._params, media, self._processing):
                if isinstance(event, ReasoningDelta) and self._shown:
                    text = shown_to_people(event.text)
                    print(text if thinking else f"\x1b[2m{text}", end="", flush=True)
                    thinking = True
                elif isinstance(event, ContentDelta):
                    text = shown_to_people(event.text)
                    print(f"\x1b[0m\n\n{text}" if thinking else text, end="", flush=True)
                    thinking = False
        except KeyboardInterrupt:
            print("\x1b[0m [stopped]" if self._shown else "", end="")
            return
        finally:
            print("\x1b[0m" if thinking else "")
        self._figures()

    def _figures(self) -> None:
        last = self._session.last
        if not self._shown or last is None:
            return
        usage = last.completion.usage
        print(
            f"\x1b[2m[{usage.prompt_tokens} tokens of conversation, {usage.cached_tokens} kept; first token after "
            f"{usage.first_token_seconds * 1e3:.0f} ms, then {usage.decode_rate:.0f} a second]\x1b[0m\n"
        )


def _path(name: str) -> Path:
    if not name:
        raise GenerationError("no file named", "a path behind the command")
    return Path(name).expanduser()
