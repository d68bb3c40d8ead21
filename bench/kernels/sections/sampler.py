"""The section of the sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.kernels.run import Run, measure, once
from bench.kernels.table import Row
from deltart.plugins import sampler
from deltart.plugins.sampler import inputs, launch

SOURCE = Path(sampler.__file__).parent / "kernel.cu"


def draw(run: Run) -> Iterator[Row]:
    """The sampler at its default settings, with top-k 20 and with every penalty."""
    shape = inputs.Shape(1, *((1000, 900) if run.small else (248320, 248077)))
    logits = 3 * np.random.default_rng(run.seed).standard_normal((1, shape.vocabulary), np.float32)
    thinking = inputs.Settings(top_k=20, top_p=0.95, seed=run.seed)
    penalised = replace(thinking, temperature=0.7, top_p=0.8, presence_penalty=1.5)
    for name, settings in (("plain", inputs.Settings()), ("thinking", thinking), ("penalties", penalised)):
        arrays = inputs.pack([settings]) | {"logits": logits}
        arrays |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace(shape).items()}
        arrays |= {"token": np.full(1, -7, np.int32)}
        if name == "penalties":
            arrays["counts"] = np.zeros((1, shape.vocabulary), np.int32)
        plan = partial(lambda b, shape: launch.sample(shape, b.at), shape=shape)
        token = once(run, SOURCE, arrays, plan).read("token")[0]
        row = Row("sampler", name, passed=bool(0 <= token < shape.limit))
        if settings.top_k:
            row.passed &= bool((logits[0, : shape.limit] > logits[0, token]).sum() < settings.top_k)
        yield measure(run, row, SOURCE, arrays, plan, logits.nbytes, 0, {})
