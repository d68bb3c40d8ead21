"""Every text is the same token for token: any schedule of any requests answers each as if it were alone.

Rounding could flip a token: a row of several tokens and one of a single token sum in different orders. The built-in
model's logits are far enough apart that none of these schedules meets a tie; a difference is therefore a fault.
"""

from __future__ import annotations

import random

import pytest

from support.schedules import Bench, Tally, check, random_arrivals, random_setting


def run(bench: Bench, prompts: list[list[int]], seeds: range, reference: Bench | None = None) -> Tally:
    tally = Tally()
    for seed in seeds:
        rng = random.Random(seed)
        setting, arrivals = random_setting(rng), random_arrivals(rng, prompts, bench)
        try:
            tally.add(check(bench, setting, arrivals, reference))
        except Exception as error:
            raise AssertionError(f"schedule {seed}: {setting}") from error
    return tally


def test_schedules(cpu: Bench, prompts: list[list[int]]) -> None:
    """On ONNX Runtime; the schedules do what they are there for."""
    tally = run(cpu, prompts, range(200))
    assert tally.preemptions > 5 and tally.cached_tokens > 500 and tally.evicted > 20
    assert 0 < tally.accepted < tally.drafted
    assert tally.finished.keys() == {"stop", "length", "cancelled"}


def test_schedules_on_a_gpu_of_host_memory(gpu: Bench, cpu: Bench, prompts: list[list[int]]) -> None:
    """Through the plans "decode", "speculate" and "prefill", on the device's loop where it serves, against ONNX Runtime
    alone."""
    tally = run(gpu, prompts, range(10_000, 10_008), cpu)
    assert 0 < tally.accepted < tally.drafted


@pytest.mark.slow
@pytest.mark.parametrize("part", range(25))
def test_many_schedules(cpu: Bench, prompts: list[list[int]], part: int) -> None:
    run(cpu, prompts, range(20_000 + 200 * part, 20_200 + 200 * part))
