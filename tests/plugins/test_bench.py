"""The benchmark without a GPU: its dry run, its resume, and its torch peers against float64."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.kernels import __main__ as bench
from bench.kernels import device, peers, table
from bench.kernels.run import Run
from bench.kernels.sections import SECTIONS
from bench.kernels.sections.gated_delta_rule import one_group
from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.tolerance import relative_rms

torch = pytest.importorskip("torch")


def tensors(arrays: dict[str, np.ndarray]) -> SimpleNamespace:
    """The arrays as CPU tensors, where a peer looks for its own."""
    return SimpleNamespace(tensors={name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def test_dry_run_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--dry-run", "--out", str(tmp_path), "--section", "decode", "conv"]
    assert bench.main([*command, "--minutes", "0"]) == 1
    assert "left for the next run: decode conv" in capsys.readouterr().out
    assert bench.main(command) == 0
    assert "decode ..." in capsys.readouterr().out
    saved = json.loads((tmp_path / "decode.json").read_text())
    assert all(row["passed"] and 0 < row["error"] < 4e-3 for row in saved["rows"])
    assert bench.main(command) == 0
    assert "..." not in capsys.readouterr().out
    saved["rows"][0]["passed"] = False
    (tmp_path / "decode.json").write_text(json.dumps(saved))
    assert bench.main(command) == 1


def test_one_group_is_its_part_of_the_whole() -> None:
    shape = inputs.Shape(slots=2, tokens=3, key_heads=2, value_heads=6, key_dim=32, value_dim=16)
    given = inputs.make(shape, 0)
    part, part_shape, heads = one_group(given, shape, 1)
    whole, found = inputs.expected(shape, given), inputs.expected(part_shape, part)
    np.testing.assert_allclose(found[0], whole[0].reshape(2, 3, 6, 16)[:, :, heads].reshape(2, 3, -1))
    np.testing.assert_allclose(found[1], whole[1][:, heads])


def test_torch_peers_compute_the_same_thing() -> None:
    shape = inputs.Shape(slots=2, key_heads=2, value_heads=6, dtype="f32", A_log_dtype="f32", dt_bias_dtype="f32")
    given = inputs.make(shape, 0)
    found = peers.torch_recurrent(shape)(tensors(given)).numpy()
    assert relative_rms(found.reshape(2, 1, -1), inputs.expected(shape, given)[0]) < 1e-5
    conv = conv_inputs.make(conv_inputs.Shape(2, 5, 64, "f32", "f32"), 0)
    assert relative_rms(peers.torch_conv(tensors(conv)).numpy(), conv_inputs.expected(conv)[0]) < 1e-6


class ShimCuda(device.Cuda):
    """The class that drives a GPU, its memory torch's on the CPU and its kernels on the shim."""

    def __init__(self) -> None:
        self.torch, self.name, self.spoilt = torch, "shim", False
        self.shared_limit, self.capability, self.multiprocessors, self.l2_bytes = 227 << 10, 90, 3, 1 << 10

    def module(self, source: Path) -> Any:
        kernels = compile_cpu(source)
        return lambda launches, stream: kernels.run(launches)

    def copies(self, call_bytes: int, limit: int = 32) -> int:
        return 2

    def synchronize(self) -> None:
        if self.spoilt:
            raise RuntimeError("an illegal memory access was encountered")

    def usable(self) -> bool:
        return not self.spoilt

    def time(self, calls: list[device.Call], replays: int = 20) -> device.Timing:
        for call in calls:
            call(0)
        return device.Timing(1.0, 0.0)


@pytest.fixture
def shim_cuda(monkeypatch: pytest.MonkeyPatch) -> ShimCuda:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone(), raising=False)
    made = ShimCuda()
    monkeypatch.setattr(bench, "Cuda", lambda: made)
    return made


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(name, marks=() if name in ("sampler", "rope") else pytest.mark.slow)
        for name in SECTIONS
        if name not in ("ceilings", "token")
    ],
)
def test_a_section_as_it_runs_on_a_gpu(shim_cuda: ShimCuda, section: str) -> None:
    """Types, shapes and addresses of every buffer pass through the class for GPUs."""
    rows = list(SECTIONS[section](Run(shim_cuda, 1, small=True)))
    assert rows and all(row.passed and row.us for row in rows), [row for row in rows if not row.passed]


def test_a_section_that_stops_ends_no_other(
    shim_cuda: ShimCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(run: Run) -> Any:
        yield table.Row("conv", "first", us=2.0)
        raise TypeError("as no check foresees")

    monkeypatch.setitem(bench.SECTIONS, "conv", broken)
    command = ["--check-only", "--seed", "1", "--out", str(tmp_path), "--section", "conv", "rope"]
    assert bench.main(command) == 1
    shown = capsys.readouterr().out
    assert "TypeError: as no check foresees" in shown and "first" in shown and "rope" in shown
    kept = json.loads((tmp_path / "conv.stopped.json").read_text())["rows"]
    assert [row["case"] for row in kept] == ["first", bench.STOPPED] and not (tmp_path / "conv.json").exists()


def test_a_spoilt_device_is_left_to_a_new_process(
    shim_cuda: ShimCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def spoil(run: Run) -> Any:
        yield from ()
        shim_cuda.spoilt = True
        shim_cuda.synchronize()

    def start(command: list[str], **how: Any) -> None:
        started.append(command)
        options = bench.parse(command[3:])
        rows = [table.Row("rope", "from the child", us=1.0)]
        table.save(options.out / "rope.json", bench.key(shim_cuda, options), rows)

    started: list[list[str]] = []
    monkeypatch.setitem(bench.SECTIONS, "conv", spoil)
    monkeypatch.setattr(bench.subprocess, "run", start)
    command = ["--check-only", "--seed", "1", "--out", str(tmp_path), "--section", "conv", "rope"]
    assert bench.main(command) == 1
    assert len(started) == 1 and started[0][-2:] == ["--section", "rope"] and "--no-rivals" in started[0]
    assert "from the child" in capsys.readouterr().out


def test_rivals_run_behind_all_of_ours(
    shim_cuda: ShimCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def start(command: list[str], **how: Any) -> None:
        options = bench.parse(command[3:])
        assert options.rivals and options.section == ["conv"]
        (tmp_path / "rivals").mkdir()
        rows = [table.Row("conv", "one", us=9.0, peers={"torch": 4.0}, notes=["torch error 1e-3"])]
        table.save(tmp_path / "rivals" / "conv.json", bench.key(shim_cuda, options), rows)

    monkeypatch.setattr(bench.subprocess, "run", start)
    monkeypatch.setitem(bench.SECTIONS, "conv", lambda run: iter([table.Row("conv", "one", us=2.0)]))
    assert bench.main(["--seed", "1", "--out", str(tmp_path), "--section", "conv"]) == 0
    shown = capsys.readouterr().out
    assert "torch 4.00 (2.00x)" in shown and "torch error 1e-3" in shown


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert bench.main(["--section", "rope"]) == 2
    assert capsys.readouterr().err
