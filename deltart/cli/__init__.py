"""The `deltart` command: one file per subcommand."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence

from deltart.cli import guard, streams
from deltart.cli.signals import raise_on_termination


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code, see `guard`; nothing but SystemExit of a usage error is raised."""

    def command() -> int:
        from deltart.cli import commands  # takes half a second, in which Ctrl-C may come

        return commands.run(arguments)

    return guard.guarded(command)


def parser() -> argparse.ArgumentParser:
    """The command line, every subcommand included."""
    from deltart.cli import commands

    return commands.parser()


def entry() -> int:
    """`main` for a process of its own: what is left is not collected at exit, which after a trace takes a second."""
    raise_on_termination()
    streams.prepare()
    code = main()
    gc.freeze()
    return code
