"""The model of a decoded token on GPUs that nobody ran: it keeps to what memory and instructions allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.kernels import desk
from deltart.planner.devices import DEVICES

LINEARS = desk.dense().launches


@pytest.mark.parametrize("name", desk.GPUS)
def test_no_launch_beats_the_memory(name: str) -> None:
    peak, linear = DEVICES[name].bandwidth, LINEARS[2]
    took = desk.seconds(desk.GPUS[name], peak, linear, 128)
    assert linear.nbytes(128) / peak < took < 3 * linear.nbytes(128) / peak


def test_a_heads_bytes_are_what_it_takes() -> None:
    gpu, head = desk.GPUS["h100"], LINEARS[-1]
    took = {how: desk.seconds(gpu, 3e12, replace(head, bytes_each=each), 128) for how, each in desk.HEADS.items()}
    assert took["int4"] < took["fp8"] < took["bf16"]
    assert took["bf16"] - took["fp8"] == pytest.approx(desk.VOCABULARY * 5120 * (1 - 2 / 128) / 3e12)


def test_bytes_latency_and_instructions_all_count() -> None:
    gpu, linear = desk.GPUS["rtx-5090"], LINEARS[2]
    usual = desk.seconds(gpu, 1.6e12, linear, 128)
    assert desk.seconds(gpu, 0.8e12, linear, 128) > 1.7 * usual
    assert desk.seconds(gpu, 1.6e12, linear, 32) > 1.05 * usual  # more scales
    assert desk.seconds(replace(gpu, latency=5e-6), 1.6e12, linear, 128) > 1.5 * usual
    slow = replace(desk.FORMATS["int4"], slots=20 * desk.FORMATS["int4"].slots)
    assert desk.seconds(gpu, 1.6e12, linear, 128, slow) > 2 * usual


def test_integer_units_hold_up_fp8_where_memory_is_fast() -> None:
    """The share of what an H200 read before addresses moved by additions, and of what an H100 could not tell."""
    linear, fp8 = LINEARS[3], desk.FORMATS["fp8"]
    took = {
        (name, slots): desk.seconds(desk.GPUS[name], bandwidth, linear, 128, replace(fp8, slots=slots))
        for name, bandwidth in (("h100", 3.0e12), ("h200", 4.3e12))
        for slots in (fp8.slots, 440)
    }
    assert took["h200", 440] > 1.15 * took["h200", fp8.slots]
    assert took["h100", 440] < 1.05 * took["h100", fp8.slots]


def test_the_sparse_model_reads_what_its_sizes_say() -> None:
    """Of 8 chosen experts and the shared one, three matrices of 512 x 2048; and no launch beats the memory."""
    launches = desk.sparse().launches
    gate_up, down = (one for one in launches if isinstance(one, desk.Routed))
    fp8 = desk.FORMATS["fp8"]
    assert gate_up.nbytes(128, fp8) == 2 * 9 * 512 * 2048 and down.nbytes(128, fp8) == 9 * 512 * 2048
    total = sum(one.calls * one.nbytes(128, fp8) for one in launches[:-1])
    active = 30 * (12288 + 2048 * 2) * 2048 + 10 * (9216 + 2048 * 2) * 2048 + 40 * 27 * 512 * 2048
    assert total == active + 30 * 2 * 64 * 2048  # and a and b of the DeltaNet layers, in bf16
    for one in (gate_up, down):
        assert desk.seconds(desk.GPUS["h100"], 3e12, one, 128, fp8) > one.nbytes(128, fp8) / 3e12
