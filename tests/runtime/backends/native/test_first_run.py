"""The first hour on a GPU, rehearsed: what bounds its steps, what they call, and the engine over a driver of stubs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.engine import __main__ as engine_bench
from bench.first_run import __main__ as first_run
from bench.first_run import prepare, twin, weights
from bench.first_run.steps import Step, steps
from bench.kernels import __main__ as kernel_bench
from deltart.artifact import load_manifest
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.native.library import find_compiler
from deltart.runtime.backends.weights import MappedWeights, WeightsRewrittenWarning
from deltart.verify.tolerances import allowed

ROOT = Path(__file__).resolve().parents[4]
Nano = Callable[[str], Path]


@pytest.fixture(scope="module")
def prepared(native_nano: Nano, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = Path(shutil.copytree(native_nano("fp8"), tmp_path_factory.mktemp("prepared") / "nano", symlinks=True))
    prepare.write_twin(artifact, 40, 30)
    return artifact


def test_nothing_stops_at_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shell(text: str) -> tuple[str, ...]:
        return ("sh", "-c", text)

    planned = [
        Step("slow", 1, 1, shell("echo before; sleep 60 & wait")),
        Step("broken", 1, 5, shell("echo words of woe; exit 3")),
        Step("absent", 1, 5, ("no-such-program",)),
        Step("other", 2, 5, shell("echo another part")),
        Step("good", 1, 5, shell("echo all is well")),
    ]
    monkeypatch.setattr(first_run, "steps", lambda *folders: planned)
    assert first_run.main(["--part", "1", "--out", str(tmp_path)]) == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert re.findall(r"^(\w+): (ran out of its 1 s|ended with \d+)", summary, re.MULTILINE) == [
        ("slow", "ran out of its 1 s"), ("broken", "ended with 3"), ("absent", "ended with 127"),
        ("good", "ended with 0"),
    ]  # fmt: skip
    assert all(text in summary for text in ("before", "words of woe", "all is well")) and "another" not in summary
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert {Path(name).name for name in archive.getnames()} >= {"slow.log", "broken.log", "absent.log", "good.log"}
    assert first_run.main(["--step", "good", "--out", str(tmp_path)]) == 0


def test_steps_call_what_there_is(tmp_path: Path) -> None:
    """Every option is known, and each part ends within a call of ten minutes where most of its steps do."""
    planned = steps(tmp_path, tmp_path)
    assert len({step.name for step in planned}) == len(planned) and planned[-1].name == "rtx"
    for step in planned:
        python, *words = step.command
        if words[:2] == ["-m", "bench.kernels"]:
            kernel_bench.parse(words[2:])
        elif words[:2] == ["-m", "bench.engine"]:
            engine_bench.parse(words[2:])
        elif words[0] == "-m" and words[1] != "pytest":
            assert (ROOT / f"{words[1].replace('.', '/')}.py").exists()
        else:
            assert python in (sys.executable, "sh")
    assert all(sum(step.seconds for step in planned if step.part == part) <= 800 for part in (1, 2, 3))


def test_the_twin_is_compared_by_block(prepared: Path) -> None:
    errors = twin.compare(prepared, HostCuda())
    assert [*errors] == [
        "embed.h",
        *(f"layers.{n}.h" for n in range(4)),
        "hidden",
        "logits",
        "mtp.hidden",
        "mtp.logits",
    ]
    assert all(error <= allowed(twin.BAR, point) for point, error in errors.items()), errors


def test_weights_come_back_as_holes(tmp_path: Path) -> None:
    sizes = dict(hidden=128, ffn=256, layers=4, heads=4, kv_heads=1, k_heads=1, v_heads=2, head_dim=64, vocab=320)
    write_checkpoint(causal_lm(text_config(**sizes)), tmp_path / "checkpoint", quantized=True, sparse=True)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    kept = {path.name: path.stat().st_size for path in (tmp_path / "artifact" / "weights").iterdir()}
    prepare.strip_weights(tmp_path)
    assert not (tmp_path / "artifact" / "weights").exists() and not (tmp_path / "checkpoint").exists()
    assert weights.restore(tmp_path) == sum(kept.values())
    manifest = load_manifest(tmp_path / "artifact")
    with pytest.warns(WeightsRewrittenWarning):
        assert set(MappedWeights(tmp_path / "artifact", manifest).paths) == set(kept)


STUBBED = """
import sys
from pathlib import Path
from types import SimpleNamespace

from bench.first_run import twin
from deltart.plugins.toolchain import sources
from deltart.runtime.backends.gpu import cuda

cuda.compile_for = lambda source, capability: SimpleNamespace(fatbin=source) if capability == 90 else None
sys.exit(twin.main([Path(sys.argv[1])]))
"""


def test_every_driver_call_is_taken(prepared: Path, tmp_path: Path) -> None:
    """cuda-bindings over a driver of stubs: memory, copies, launches, capture; the results are found to be wrong."""
    pytest.importorskip("cuda.bindings")
    library = tmp_path / "libcuda.so.1"
    source = ROOT / "tests" / "support" / "stub_driver.c"
    subprocess.run([find_compiler(), "-x", "c", str(source), "-shared", "-fPIC", "-w", "-o", str(library)], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", STUBBED, str(prepared)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "TOO LARGE" in done.stdout, done.stderr
    counts = {name: int(count) for name, count in re.findall(r"^stub (\w+) (\d+)$", done.stderr, re.MULTILINE)}
    assert counts["launch"] > 150 and counts["capture"] == 2 and counts["replay"] >= 15
    assert counts["module"] == counts["function"] or counts["function"] > counts["module"] > 8
