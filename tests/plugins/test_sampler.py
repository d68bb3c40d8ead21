"""The device sampler against the CPU sampler of the runtime, on the CPU shim."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltart.plugins import sampler
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.sampler import inputs, launch
from deltart.plugins.sampler.inputs import Settings, Shape
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler

FOLDER = Path(sampler.__file__).parent
SHAPE = Shape(vocabulary=100, limit=90)


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def device(
    kernels: CpuModule,
    logits: np.ndarray,
    rows: list[Settings],
    limit: int,
    counts: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    threads: int = 64,
    order: int = FORWARD,
    blocks: int = 0,
) -> np.ndarray:
    """One token per row; `counts` is updated."""
    shape = Shape(len(rows), logits.shape[1], limit)
    arrays = inputs.pack(rows) | scratch(shape) | {"logits": np.ascontiguousarray(logits, np.float32)}
    arrays |= {name: x for name, x in (("counts", counts), ("allowed", allowed)) if x is not None}
    at = {name: x.ctypes.data for name, x in arrays.items()}
    kernels.run(launch.sample(shape, at, threads=threads, blocks=blocks), order)
    return arrays["token"]


def scratch(shape: Shape) -> dict[str, np.ndarray]:
    """token, and the scratch arrays full of ones but for what has to be zero."""
    made = {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    made["work"][:] = 0
    return made | {"token": np.full(shape.rows, -7, np.int32)}


def host(settings: Settings, prompt: list[int], generated: list[int], limit: int) -> Sampler:
    params = {
        name: getattr(settings, name)
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "seed",
        )
    }
    one = Sampler(SamplingParams(**params), prompt, limit)
    for token in generated:
        one.accept(token)
    return one


def bitmask(rng: np.random.Generator, vocabulary: int) -> np.ndarray:
    bits = rng.random(-(-vocabulary // 32) * 32) < 0.5
    return np.packbits(bits, bitorder="little").view(np.uint32)


CASES = {
    "plain": Settings(),
    "cold": Settings(temperature=0.3),
    "top-k": Settings(top_k=7),
    "top-p": Settings(top_p=0.8),
    "min-p": Settings(min_p=0.1),
    "all cuts": Settings(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02),
    "penalties": Settings(
        temperature=1.2, presence_penalty=1.5, frequency_penalty=0.4, repetition_penalty=1.3, top_p=0.95
    ),
    "hot": Settings(temperature=50.0, top_p=0.5),
}


def agrees(kernels: CpuModule, settings: Settings, draws: int, masked: bool, ties: bool = False) -> bool:
    """Chi-square of `draws` device draws against the CPU sampler's probabilities, below its 1e-3 quantile (the draws
    are the same in every run); no token outside its set, and none inside it is missed."""
    rng = np.random.default_rng(5)
    logits = (3 * rng.standard_normal(SHAPE.vocabulary)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    order = np.argsort(-logits[: SHAPE.limit]).tolist()
    prompt, generated = order[0:12:2], [*order[1:12:3], *order[2:10:4], order[1], order[1]]
    allowed = bitmask(rng, SHAPE.vocabulary) if masked else None
    ids, probs = host(settings, prompt, generated, SHAPE.limit).distribution(
        logits, None if allowed is None else allowed.view(np.int32)
    )
    counts = np.tile(inputs.counts(SHAPE, prompt, generated), (draws, 1))
    rows = [replace(settings, seed=11, step=i) for i in range(draws)]
    masks = None if allowed is None else np.tile(allowed, (draws, 1))
    tokens = device(kernels, np.tile(logits, (draws, 1)), rows, SHAPE.limit, counts, masks, threads=32, blocks=2)
    found = np.bincount(tokens, minlength=SHAPE.vocabulary)
    if found.sum() != found[ids].sum():
        return False  # a token that may not come
    expected = draws * probs
    if (found[ids][expected >= 20] == 0).any():
        return False
    large = expected >= 5
    pools = [(found[ids[large]], expected[large])]
    if expected[~large].sum() >= 5:
        pools.append((found[ids[~large]].sum()[None], expected[~large].sum()[None]))
    seen, right = (np.concatenate(part) for part in zip(*pools, strict=True))
    chi, freedom = ((seen - right) ** 2 / right).sum(), max(1, len(seen) - 1)
    return bool(chi <= freedom + 5.3 * np.sqrt(freedom) + 14)  # Laurent and Massart's bound


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_distribution(case: str, masked: bool) -> None:
    assert agrees(module(), CASES[case], 3000, masked)


def test_distribution_with_equal_logits() -> None:
    for case in ("top-k", "top-p", "all cuts"):
        assert agrees(module(), CASES[case], 3000, False, ties=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_distribution_over_1e5_draws(case: str) -> None:
    assert agrees(module(), CASES[case], 100_000, True, ties=case == "all cuts")


@pytest.mark.parametrize("case", ["plain", "cold", "top-k", "min-p", "penalties"])
def test_the_same_draws_as_the_cpu_sampler(case: str) -> None:
    """Without a nucleus both walk the ids in order with the same random numbers: the tokens are the same."""
    settings = replace(CASES[case], top_p=1.0, seed=2**63 + 12345)
    rng = np.random.default_rng(1)
    logits = (2 * rng.standard_normal((60, 3000))).astype(np.float32)
    one = host(settings, [1, 2], [5], 2990)
    shape, counts = Shape(1, 3000, 2990), inputs.counts(Shape(1, 3000, 2990), [1, 2], [5])[None]
    for step in range(60):
        right = one.sample(logits[step])
        assert (
            device(module(), logits[step : step + 1], [replace(settings, step=step + 1)], shape.limit, counts)[0]
            == right
        )
    assert (counts[0] & ~inputs.PROMPT_BIT).sum() == 61


def test_greedy_takes_the_lowest_of_the_largest() -> None:
    logits = np.zeros((3, 50), np.float32)
    logits[0, [45, 20, 30]] = 4
    logits[1, 49] = 9
    logits[2] = -np.inf
    logits[2, 17] = -3
    found = device(module(), logits, [Settings(temperature=0)] * 3, 48)
    assert found.tolist() == [20, 0, 17]


def test_a_broken_row_gives_no_token() -> None:
    logits = np.zeros((3, 64), np.float32)
    logits[0, 40] = np.nan
    logits[1, 2] = np.inf
    logits[2] = -np.inf
    assert device(module(), logits, [Settings()] * 3, 64).tolist() == [-1, -1, -1]


def test_a_row_does_not_depend_on_threads_blocks_or_their_order() -> None:
    logits = (3 * np.random.default_rng(0).standard_normal((8, 1000))).astype(np.float32)
    rows = [Settings(temperature=0.9, top_k=50, top_p=0.7, seed=3, step=i) for i in range(8)]
    runs = [
        device(module(), logits, rows, 999, threads=threads, order=order, blocks=blocks)
        for threads, order, blocks in itertools.product((32, 128), (FORWARD, REVERSE), (1, 3, 7))
    ]
    assert all((runs[0] == one).all() for one in runs)


def test_a_full_vocabulary() -> None:
    rng = np.random.default_rng(2)
    logits = (3 * rng.standard_normal((1, 248320))).astype(np.float32)
    settings = Settings(temperature=0.6, top_k=20, top_p=0.95, seed=9)
    ids, _ = host(settings, [], [], 248077).distribution(logits[0])
    assert device(module(), logits, [settings], 248077, threads=128)[0] in ids


def feeds(kernels: CpuModule) -> bool:
    """Three rows, the middle one idle, three steps: what is drawn goes into the next step's inputs and the ring."""
    rng, shape, ring = np.random.default_rng(4), Shape(3, 100, 90), 2
    logits = [(3 * rng.standard_normal((3, 100))).astype(np.float32) for _ in range(3)]
    rows = [Settings(seed=7, step=0), Settings(), Settings(seed=8, step=5, top_k=4)]
    arrays = inputs.pack(rows) | scratch(shape)
    fed = {
        "input_ids": np.zeros(3, np.int64),
        "position_ids": np.tile(np.array([10, 20, 30]), (3, 1)),
        "past_len": np.array([10, 20, 30], np.int32),
        "n_tokens": np.array([1, 0, 1], np.int32),
        "history": np.full((ring, 3), -7, np.int32),
    }
    for step, scores in enumerate(logits):
        at = {name: array.ctypes.data for name, array in (arrays | fed | {"logits": scores}).items()}
        kernels.run(launch.sample(shape, at, ring, threads=64, blocks=2))
        now = [replace(row, step=row.step + step) for row in rows]
        right = device(kernels, scores, now, 90)[[0, 2]]
        drawn = [fed["history"][row.step % ring, index] for index, row in ((0, now[0]), (2, now[2]))]
        if not (fed["input_ids"][[0, 2]] == right).all() or not (drawn == right).all():
            return False
    idle = (fed["history"][:, 1] == -7).all() and arrays["token"][1] == -7 and fed["input_ids"][1] == 0
    moved = fed["past_len"].tolist() == [13, 20, 33] and (fed["position_ids"] == [13, 20, 33]).all()
    return bool(idle and moved and arrays["seed_step"][:, 1].tolist() == [3, 0, 8])


def test_tokens_are_fed_to_the_next_step() -> None:
    assert feeds(module())
