"""llama.cpp through its C API, since its Python class keeps one sequence; tokens of several go in one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 512  # tokens of a call, llama.cpp's own default


def open_llama(
    gguf: Path, rows: int, context: int
) -> tuple[Callable[[Sequence[Sequence[int]]], list[int]], Callable[[list[int]], list[int]]]:
    """(reads a prompt a row from empty states, feeds a token a row) of a model; both return each row's likeliest token.

    All cores work, in prompts and in replies: the Python class gives replies half of them.
    """
    import llama_cpp as lib  # type: ignore[import-not-found]  # only where it is measured

    model = lib.Llama(str(gguf), n_ctx=BATCH, verbose=False)  # its own small context stays unused
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = rows * context, BATCH, BATCH, rows
    params.n_threads = params.n_threads_batch = os.cpu_count() or 1
    engine = lib.llama_init_from_model(model._model.model, params)
    if not engine:
        raise SystemExit(f"llama.cpp has no context of {rows} rows of {context} tokens for {gguf}")
    batch = lib.llama_batch_init(max(BATCH, rows), 0, 1)
    lengths = [0] * rows

    def decode(tokens: Sequence[tuple[int, int, bool]]) -> None:
        """Feed (row, token, whether its logits are wanted)."""
        batch.n_tokens = len(tokens)
        for place, (row, token, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, lengths[row]
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = wanted
            lengths[row] += 1
        status = lib.llama_decode(engine, batch)
        if status:
            raise SystemExit(f"llama.cpp's decode ended with {status}")

    def likeliest(place: int) -> int:
        logits: Any = lib.llama_get_logits_ith(engine, place)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    def prefill(prompts: Sequence[Sequence[int]]) -> list[int]:
        lib.llama_memory_clear(lib.llama_get_memory(engine), True)
        lengths[:] = [0] * rows
        found = []
        for row, ids in enumerate(prompts):
            for begin in range(0, len(ids), BATCH):
                end = min(begin + BATCH, len(ids))
                decode([(row, ids[i], i == len(ids) - 1) for i in range(begin, end)])
            found.append(likeliest(-1))
        return found

    def step(tokens: list[int]) -> list[int]:
        decode([(row, token, True) for row, token in enumerate(tokens)])
        return [likeliest(row) for row in range(rows)]

    return prefill, step
