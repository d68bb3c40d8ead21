"""All subcommands in one parser, and the one that was asked for, run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import deltart
from deltart.cli import (
    bench,
    build,
    cache_option,
    calibrate,
    chat,
    doctor,
    export,
    extras,
    generate,
    inspect,
    merge,
    plan,
    plugins,
    serve,
    synthesize,
    verify,
)
from deltart.cli.guard import say
from deltart.cli.signals import ending
from deltart.version import __version__

COMMANDS = (
    inspect, merge, calibrate, export, plan, build, verify, bench, generate, chat, serve, synthesize, plugins, doctor,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line, every subcommand included."""
    root = argparse.ArgumentParser(prog="deltart", description=deltart.__doc__)
    root.set_defaults(extra="", interrupted="nothing was left half-written")
    root.add_argument("--version", action="version", version=f"deltart {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for module in COMMANDS:
        module.add_parser(commands)
    return root


def run(arguments: Sequence[str] | None) -> int:
    """Run one command; the exit code it asks for.

    Raises:
        MissingDependencyError: it needs a package that is not installed.
        Exception: whatever the command raises.
    """
    parsed = parser().parse_args(arguments)
    cache_option.apply(parsed)
    try:
        return int(parsed.run(parsed) or 0)
    except ImportError as error:
        raise extras.missing(error, parsed.command, parsed.extra) from error
    except KeyboardInterrupt as stop:
        how, code = ending(stop)
        return say(f"{how}; {parsed.interrupted}", code)
