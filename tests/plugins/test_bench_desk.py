"""The model of a decoded token on GPUs that nobody ran: it keeps to what memory and instructions allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.kernels import desk
from deltart.planner.devices import DEVICES


@pytest.mark.parametrize("name", desk.GPUS)
def test_no_launch_beats_the_memory(name: str) -> None:
    peak, linear = DEVICES[name].bandwidth, desk.LINEARS[2]
    took = desk.seconds(desk.GPUS[name], peak, linear, 128)
    assert linear.nbytes(128) / peak < took < 3 * linear.nbytes(128) / peak


def test_a_heads_bytes_are_what_it_takes() -> None:
    gpu, head = desk.GPUS["h100"], desk.LINEARS[-1]
    took = {how: desk.seconds(gpu, 3e12, replace(head, bytes_each=each), 128) for how, each in desk.HEADS.items()}
    assert took["int4"] < took["fp8"] < took["bf16"]
    assert took["bf16"] - took["fp8"] == pytest.approx(desk.VOCABULARY * desk.HIDDEN * (1 - 2 / 128) / 3e12)


def test_bytes_latency_and_instructions_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, linear = desk.GPUS["rtx-5090"], desk.LINEARS[2]
    usual = desk.seconds(gpu, 1.6e12, linear, 128)
    assert desk.seconds(gpu, 0.8e12, linear, 128) > 1.7 * usual
    assert desk.seconds(gpu, 1.6e12, linear, 32) > 1.05 * usual  # more scales
    assert desk.seconds(replace(gpu, latency=5e-6), 1.6e12, linear, 128) > 1.5 * usual
    monkeypatch.setattr(desk, "INSTRUCTIONS", 20 * desk.INSTRUCTIONS)
    assert desk.seconds(gpu, 1.6e12, linear, 128) > 2 * usual
