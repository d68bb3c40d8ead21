"""The `deltart` command: one file per subcommand."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Sequence

import deltart
from deltart.cli import build, calibrate, doctor, export, generate, inspect, serve, synthesize, verify
from deltart.cli.signals import Terminated, raise_on_termination
from deltart.errors import DeltaRTError

COMMANDS = (inspect, calibrate, export, build, verify, generate, serve, synthesize, doctor)


def parser() -> argparse.ArgumentParser:
    """The command line, every subcommand included."""
    root = argparse.ArgumentParser(prog="deltart", description=deltart.__doc__)
    root.add_argument("--version", action="version", version=f"deltart {deltart.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 after printing a deliberate error, or 128 + N when signal N ended it."""
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except DeltaRTError as error:
        print(f"deltart: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        ended = isinstance(stop, Terminated)
        goes_on = parsed.run is calibrate.run
        left = "the same command goes on from here" if goes_on else "nothing was left half-written"
        print(f"deltart: {'terminated' if ended else 'interrupted'}; {left}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def entry() -> int:
    """`main` for a process of its own: what is left is not collected at exit, which after a trace takes a second."""
    raise_on_termination()
    code = main()
    gc.freeze()
    return code
