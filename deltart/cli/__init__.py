"""The `deltart` command: one file per subcommand."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence

import deltart
from deltart.cli import build, cache_option, calibrate, doctor, export, generate, inspect, synthesize, verify
from deltart.errors import DeltaRTError

COMMANDS = (inspect, calibrate, export, build, verify, generate, synthesize, doctor)


def parser() -> argparse.ArgumentParser:
    """The command line, every subcommand included."""
    root = argparse.ArgumentParser(prog="deltart", description=deltart.__doc__)
    root.add_argument("--version", action="version", version=f"deltart {deltart.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 after printing a deliberate error, or 130 when interrupted."""
    parsed = parser().parse_args(arguments)
    cache_option.apply(parsed)
    try:
        return int(parsed.run(parsed) or 0)
    except DeltaRTError as error:
        print(f"deltart: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deltart: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def entry() -> int:
    """`main` for a process of its own: what is left is not collected at exit, which after a trace takes a second."""
    code = main()
    gc.freeze()
    return code
