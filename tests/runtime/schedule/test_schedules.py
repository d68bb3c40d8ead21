"""Every text is the same token for token: any schedule of any requests answers each as if it were alone.

Rounding could flip a token: a row of several tokens and one of a single token sum in different orders. A difference
is a fault unless logits that are off by as much draw either token, which one schedule in thousands meets.
"""

from __future__ import annotations

import random

import pytest

from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request
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
    assert run(cpu, prompts, range(20_000 + 200 * part, 20_200 + 200 * part)).ties <= 1


def test_a_draw_at_a_border_is_a_tie_and_others_are_none(cpu: Bench) -> None:
    """A request that one schedule in four thousand answered otherwise: its draw is 1e-6 from a border."""
    ids = (1194, 1179, 198, 366, 256, 85, 66, 75, 76, 308, 1195, 198, 1194, 1187, 198, 1217, 198)
    params = SamplingParams(
        temperature=0.5, top_k=0, top_p=1.0, presence_penalty=1.5, seed=1025789909, max_new_tokens=60, stop=("e",),
        ignore_eos=True,
    )  # fmt: skip
    request, step = Request(ids, params), 12
    assert cpu.is_tie(request, 0, step, 1096) and cpu.is_tie(request, 0, step, 1098)
    assert not any(cpu.is_tie(request, 0, step, token) for token in (85, 198, 1000))
    assert not any(cpu.is_tie(request, 0, step - 1, token) for token in (1096, 1098))
