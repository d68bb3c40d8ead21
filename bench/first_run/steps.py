"""What is run on a GPU for the first time, in the order of what it answers, and how long each may take."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable
DECODE = ("ceilings", "decode", "speculate", "conv", "norm", "residual", "rope", "head", "sampler", "projections")
TWINS = ("nano", "nano-fp8", "nano-int4", "tiny-moe-fp8")  # checked against their CPU twins
FULL = ("27b", "35b", "27b-int4")  # timed with random weights
REST = ("linear", "attention", "prefill", "joined", "experts", "token")
FACTS = (
    "import sys, numpy; print(sys.version, 'numpy', numpy.__version__)\n"
    "for name in ('torch', 'triton', 'fla', 'cuda.bindings', 'onnx', 'onnxruntime', 'transformers', 'tensorrt_rtx'):\n"
    "    try: print(name, getattr(__import__(name, fromlist=['x']), '__version__', 'there'))\n"
    "    except Exception as error: print(name, 'absent:', error)"
)


@dataclass(frozen=True)
class Step:
    """A command with a name, the seconds that it may take, and the part of the hour that it belongs to."""

    name: str
    part: int
    seconds: int
    command: tuple[str, ...]


def steps(prepared: Path, work: Path) -> list[Step]:
    """Every step; parts fit ten minutes each.

    Args:
        prepared: what `bench.first_run --prepare` left.
        work: a folder for results that are no logs.
    """

    def python(*words: str) -> tuple[str, ...]:
        return (PYTHON, *words)

    def native(name: str, *contexts: int) -> Step:
        asked = (
            "--flavour",
            "native",
            "--as-built",
            "--random-weights",
            "--trace",
            "--serial",
            "--prompt",
            "2048",
            "8192",
        )
        found = ("--context", *(str(n) for n in contexts), "--steps", "20", "--out", str(work / name))
        model = str(prepared / name / "artifact")
        return Step(f"native-{name}", 2, 120, python("-m", "bench.engine", model, *asked, *found))

    kernels = python("-m", "bench.kernels", "--out", str(work / "kernels"))
    twins = (str(prepared / name) for name in TWINS)
    return [
        Step("machine", 1, 20, ("sh", "-c", "uname -a; nproc; free -g; df -h .; nvidia-smi; nvidia-smi topo -m")),
        Step("packages", 1, 60, python("-c", FACTS)),
        Step("compile", 1, 150, python("-m", "bench.first_run.compile")),
        Step("kernels-check", 1, 150, (*kernels, "--check-only", "--no-rivals")),
        Step("twins", 1, 90, python("-m", "bench.first_run.twin", *twins)),
        Step("kernels-decode", 1, 150, (*kernels, "--no-rivals", "--minutes", "2", "--section", *DECODE)),
        Step("weights", 2, 30, python("-m", "bench.first_run.weights", *(str(prepared / name) for name in FULL))),
        native("27b", 0, 1024, 32768, 131072),
        native("35b", 0, 1024, 32768),
        native("27b-int4", 0, 32768),
        Step("kernels-rest", 2, 200, (*kernels, "--no-rivals", "--minutes", "3", "--section", *REST)),
        Step("gpu-tests", 2, 150, python("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junit-xml",
             str(work / "gpu.xml"))),
        Step("rivals", 3, 300, (*kernels, "--minutes", "4")),
        *(
            Step(f"sanitize-{tool}", 3, 90, python("-m", "bench.kernels", "--sanitize", tool))
            for tool in ("memcheck", "racecheck")
        ),
        Step("rtx", 3, 120, python("-m", "bench.engine", "--flavour", "rtx", "--gpu", "current", "--count", "2",
             "--out", str(work))),
    ]  # fmt: skip
