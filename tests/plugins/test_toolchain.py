"""Finding nvcc, caching, reading the assembler's report, and the gates on what the kernels take."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltart import caches
from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins import cache, toolchain
from deltart.plugins.causal_conv1d import launch as conv
from deltart.plugins.causal_conv1d.inputs import Shape as ConvShape
from deltart.plugins.gated_delta_rule import launch as gdr
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.norm import Norm, decode_norm
from deltart.plugins.launch import Launch

HOPPER = ("90a",)
# Registers per thread: four blocks of 128 threads, or two of 256, stay resident with 128. The scan runs one warp
# per scheduler and may take all 255.
CEILINGS = {
    "causal_conv1d": 128,
    "gated_delta_rule_decode": 128,
    "gated_delta_rule_norm": 128,
    "gated_delta_rule_prefill_chunk": 168,
    "gated_delta_rule_prefill_scan": 255,
}
F32_SCAN_SPILLS = 160  # bytes; serves the tests' f32 activations, not TensorRT's bf16

LOG = """
ptxas info    : Compiling entry function 'scale_bf16' for 'sm_90a'
ptxas info    : Function properties for scale_bf16
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compiling entry function 'scale_f32' for 'sm_80'
ptxas info    : Function properties for scale_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 456 bytes cmem[0]
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """An executable that stands for nvcc."""
    path = tmp_path / "home" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return path


def test_nvcc_is_looked_for_in_order(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path / "site"))
    with pytest.raises(MissingDependencyError, match="pip install nvidia-cuda-nvcc"):
        toolchain.find_nvcc()
    wheel = tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc"
    wheel.parent.mkdir(parents=True)
    wheel.symlink_to(compiler)
    assert toolchain.find_nvcc() == wheel
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolchain.find_nvcc() == compiler
    on_path = tmp_path / "nvcc"
    on_path.symlink_to(compiler)
    assert toolchain.find_nvcc() == on_path
    assert toolchain.find_nvcc(compiler) == compiler
    with pytest.raises(MissingDependencyError, match="not an executable"):
        toolchain.find_nvcc(tmp_path)


def test_a_broken_compiler_is_reported(compiler: Path) -> None:
    with pytest.raises(BuildError, match="--version failed"):
        toolchain.compile_gpu(toolchain.sources()[0], nvcc=compiler)


def test_reads_the_report() -> None:
    rows = toolchain.parse(LOG)
    assert [(r.kernel, r.target, r.registers, r.stack, r.spill_stores, r.spill_loads) for r in rows] == [
        ("scale_bf16", "90a", 64, 16, 4, 8),
        ("scale_f32", "80", 40, 0, 0, 0),
    ]
    with pytest.raises(BuildError, match="scale_f32"):
        toolchain.parse(LOG.replace("Used 40 registers", ""))


def test_cache_key_follows_headers_and_flags(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n#include <math.h>\n')
    (tmp_path / "b.cuh").write_text("one")
    first = cache.key(tmp_path / "a.cu", ("-O3",))
    assert cache.key(tmp_path / "a.cu", ("-O3",)) == first != cache.key(tmp_path / "a.cu", ("-O2",))
    (tmp_path / "b.cuh").write_text("two")
    assert cache.key(tmp_path / "a.cu", ("-O3",)) != first


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[Path]:
    """An empty cache of kernels for one test."""
    caches.move(tmp_path / "caches")
    yield tmp_path / "caches" / caches.KERNELS
    caches.move(None)


def test_cache_builds_once_and_leaves_nothing_of_a_failure(tmp_path: Path, kernels: Path) -> None:
    source = tmp_path / "a.cu"
    source.write_text("")
    calls: list[Path] = []

    def make(folder: Path, fails: bool) -> None:
        calls.append(folder)
        (folder / "x").write_text("half")
        if fails:
            raise BuildError("no")

    with pytest.raises(BuildError):
        cache.build(source, (), functools.partial(make, fails=True))
    assert list(kernels.iterdir()) == []
    built = [cache.build(source, (), functools.partial(make, fails=False)) for _ in range(2)]
    assert built[0] == built[1] and len(calls) == 2 and (built[0] / "x").read_text() == "half"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "an empty file": lambda entry: (entry / "x").write_bytes(b""),
    "another file": lambda entry: (entry / "x").write_bytes(b"whale"),
    "a file gone": lambda entry: (entry / "x").unlink(),
    "a file more": lambda entry: (entry / "y").touch(),
    "no digests": lambda entry: (entry / cache.DIGESTS).unlink(),
    "empty digests": lambda entry: (entry / cache.DIGESTS).write_bytes(b""),
    "a folder for a file": lambda entry: ((entry / "x").unlink(), (entry / "x").mkdir()),
    "an empty entry": lambda entry: [path.unlink() for path in entry.iterdir()],
    "a file for the entry": lambda entry: (shutil.rmtree(entry), entry.write_bytes(b"x")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_entry_is_made_again(damage: Callable[[Path], object], tmp_path: Path, kernels: Path) -> None:
    (tmp_path / "a.cu").write_text("")

    def make(folder: Path) -> None:
        (folder / "x").write_text("whole")

    damage(cache.build(tmp_path / "a.cu", (), make))
    entry = cache.build(tmp_path / "a.cu", (), make)
    assert (entry / "x").read_text() == "whole" and list(kernels.iterdir()) == [entry]


def every_launch() -> list[Launch]:
    """One launch of each kernel that the plans know."""
    names = ["qkv", "a", "b", "A_log", "dt_bias", "S", "n_tokens", "n_commit", "o", "workspace"]
    names += ["x", "weight", "state", "y", "z", "norm_weight"]
    at, launches = dict.fromkeys(names, 0), []
    for dtype in ("f32", "bf16"):
        for tiles in (gdr.Tiling(8, 1), gdr.Tiling(16, 1)):
            launches.append(gdr.decode(Shape(dtype=dtype), at, tiles))
        launches.append(decode_norm(Shape(dtype=dtype), Norm(), at))
        for limit in (227 << 10, 99 << 10):
            launches += gdr.prefill(gdr.chunking(Shape(tokens=65, dtype=dtype), limit), at)
        launches.append(conv.forward(ConvShape(dtype=dtype), at))
    return launches


def gates(targets: tuple[str, ...]) -> None:
    """No spills, registers under the ceilings, and every kernel that a plan names is in a fatbin."""
    try:
        toolchain.find_nvcc()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    built = [
        toolchain.compile_gpu(source, targets)
        for source in toolchain.sources()
        if source.parent.name in ("gated_delta_rule", "causal_conv1d")
    ]
    rows = [row for one in built for row in one.resources]
    for target in targets:
        assert {one.kernel for one in every_launch()} == {row.kernel for row in rows if row.target == target}
    for row in rows:
        ceiling = next(limit for name, limit in reversed(CEILINGS.items()) if row.kernel.startswith(name))
        assert row.registers <= ceiling, row
        allowed = F32_SCAN_SPILLS if row.kernel.startswith("gated_delta_rule_prefill_scan_f32") else 0
        assert row.spill_stores + row.spill_loads <= allowed, row


def test_gates_on_hopper() -> None:
    gates(HOPPER)


@pytest.mark.slow
def test_gates_on_every_target() -> None:
    gates(toolchain.TARGETS)


def test_shared_memory_fits_the_small_gpus() -> None:
    for dtype in ("f32", "bf16"):
        plan = gdr.chunking(Shape(tokens=64, dtype=dtype), shared_limit=99 << 10)  # sm_86, 89 and 120
        assert plan.chunk == 32
    assert gdr.chunking(Shape(tokens=64), shared_limit=163 << 10).chunk == 64  # sm_80


def test_workspace_does_not_grow_with_slots_or_tokens() -> None:
    most = gdr.chunking(Shape(tokens=2048)).workspace_bytes()
    assert most == 2048 * 48 * (8 * 64 + 16)
    for slots, tokens in ((1, 32768), (7, 5000), (32, 64), (32, 4096)):
        assert gdr.chunking(Shape(slots=slots, tokens=tokens)).workspace_bytes() <= most
