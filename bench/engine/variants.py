"""`python -m bench.engine.variants ARTIFACT NAME=PLUGINS...`: decode steps with the kernels of other source trees.

By turns in one process, over the same weights and with this tree's launches: what one changed kernel does to a whole
step, without loading the model again. Kernels must take the arguments and the shared memory that this tree's do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.engine import measure
from bench.engine.device import Device, Gpu, HostGpu
from bench.engine.weights import randomize
from deltart.errors import DeltaRTError
from deltart.plugins import toolchain
from deltart.plugins.launch import Launch
from deltart.runtime.backends.gpu.backend import TensorRtBackend

PLUGINS = Path(toolchain.__file__).resolve().parent
OURS = "here"


class Kernels:
    """Puts the kernels of another source tree in place of this one's, from the next launch on."""

    def __init__(self, cuda: Any) -> None:
        self.plugins = PLUGINS
        self._load: Callable[[Path], Callable[[list[Launch]], None]] = cuda.kernels
        cuda.kernels = lambda source: lambda launches: self._run(source, launches)

    def _run(self, source: Path, launches: list[Launch]) -> None:
        self._load(self.plugins / source.resolve().relative_to(PLUGINS))(launches)


def compare(
    device: Device, artifact: Path, trees: Mapping[str, Path], contexts: Sequence[int], rounds: int = 4, steps: int = 5
) -> list[dict[str, Any]]:
    """A row for each tree, context and way to launch: the step's time on the device, least and median of the rounds."""
    kernels, copy_gbs = Kernels(device.cuda), device.copy_gbs()
    backend = TensorRtBackend(artifact, "native", cuda=device.cuda, load=device.load(artifact, "native"))
    randomize(device.cuda, backend)
    found: dict[tuple[str, int, bool], list[float]] = {}
    for turn in range(rounds):
        for name in [*trees] if turn % 2 == 0 else [*trees][::-1]:
            kernels.plugins = trees[name]
            for overlapping in (True, False):
                device.overlap(overlapping)
                for context in contexts:
                    row = measure.decode(device, backend, context, steps, copy_gbs)
                    found.setdefault((name, context, overlapping), []).append(1e3 * row["device_ms"])
    return [
        {"kernels": name, "context": context, "overlapping": overlapping, "min_us": min(us), "median_us": median(us)}
        for (name, context, overlapping), us in sorted(found.items())
    ]


def main(arguments: Sequence[str]) -> int:
    """0; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine.variants", description=__doc__)
    parser.add_argument("artifact", type=Path, help="with native plans")
    parser.add_argument("tree", nargs="+", metavar="NAME=PLUGINS", help="a copy of plugins/ with changes")
    parser.add_argument("--context", type=int, nargs="+", default=[0], metavar="N", help="tokens (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the rows as JSON")
    parser.add_argument("--dry-run", action="store_true", help="over host memory; no GPU needed")
    options = parser.parse_args(arguments)
    trees = {OURS: PLUGINS} | {n: Path(f).resolve() for n, _, f in (tree.partition("=") for tree in options.tree)}
    try:
        device: Device = HostGpu() if options.dry_run else Gpu()
        rows = compare(device, options.artifact, trees, options.context)
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        how = "overlapping" if row["overlapping"] else "one by one"
        print(
            "{kernels:16} context {context:7} {how:12} {min_us:9.1f} us, median {median_us:9.1f}".format(**row, how=how)
        )
    if options.out:
        options.out.write_text(json.dumps({"device": device.name, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
