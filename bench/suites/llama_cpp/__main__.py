"""llama.cpp's server tests against `deltart serve`, as far as they ask for what is no other server's own.

    python -m bench.suites.llama_cpp CHECKOUT --python PYTHON [--artifact DIR] [-k WORDS]

CHECKOUT is a source tree of llama.cpp, PYTHON one of an environment with `pytest requests wget filelock aiohttp
prometheus-client openai numpy`. Prints what passed, what failed and what was left out for which reason; exit code 1
where a test fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from bench.suites.serving import exported

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "basic", "chat_completion", "completion", "compat_anthropic", "compat_oai_responses", "ctx_shift", "ignore_eos",
    "metrics", "security", "speculative", "template", "tokenize", "tool_call", "vision_api",
)  # fmt: skip
SHIM = "#!/bin/sh\nexec '{python}' -m bench.suites.llama_cpp.server \"$@\"\n"


def run(checkout: Path, python: Path, artifact: Path, folder: Path, chosen: list[str]) -> Path:
    """Runs the tests; pytest's report."""
    shim = folder / "llama-server"
    shim.write_text(SHIM.format(python=sys.executable), encoding="utf-8")
    shim.chmod(0o755)
    environment = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(shim),
        "ARTIFACT": str(artifact.resolve()),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
        "PYTHONUNBUFFERED": "1",
    }
    report = folder / "report.xml"
    tests = [f"unit/test_{name}.py" for name in FILES]
    flags = ["-q", "-p", "llama_cpp_plugin", "-p", "no:cacheprovider", "-m", "not slow", "--junit-xml", str(report)]
    command = [str(python.absolute()), "-m", "pytest", *flags, *chosen, *tests]
    subprocess.run(command, cwd=checkout / "tools" / "server" / "tests", env=environment, check=False)
    return report


def summary(report: Path) -> int:
    """Prints the counts of a report; how many tests failed."""
    kinds, reasons = Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            kinds["left out"] += 1
            reasons[skipped.get("message", "")] += 1
        else:
            failed = case.find("failure") is not None or case.find("error") is not None
            kinds["failed" if failed else "passed"] += 1
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    for reason, count in reasons.most_common():
        print(f"  {count} left out: {reason}")
    return kinds["failed"]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with the tests' packages")
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("-k", metavar="WORDS", help="pytest's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = ["-k", options.k] if options.k else []
        report = run(options.checkout, options.python, exported(options.artifact, folder), folder, chosen)
        return int(summary(report) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
