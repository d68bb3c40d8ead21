"""An engine and ONNX Runtime on one artifact, fed the same calls."""

from __future__ import annotations

import numpy as np

from deltart.runtime.backends.base import Backend
from deltart.runtime.backends.inputs import mtp_inputs, text_inputs


class Twins:
    """Both backends with a state each of `rows` sequences of a graph."""

    def __init__(self, engine: Backend, cpu: Backend, rows: int, capacity: int, graph: str = "model") -> None:
        self.engine, self.cpu, self.graph = engine, cpu, graph
        self.states = [backend.new_state(graph, rows, capacity) for backend in (engine, cpu)]
        self.past = np.zeros(rows, np.int32)

    def call(self, ids: np.ndarray, counts: np.ndarray, index: np.ndarray, **extra: np.ndarray) -> float:
        """The largest relative RMS error over both outputs, where they are defined."""
        length, counts = ids.shape[1], counts.astype(np.int32)
        make = text_inputs if self.graph == "model" else mtp_inputs
        inputs = make(ids, past_len=self.past.copy(), n_tokens=counts, logit_index=index, **extra)
        (logits, hidden), (expected, expected_hidden) = (
            backend.run(self.graph, state, inputs, ["logits", "hidden"])
            for backend, state in zip((self.engine, self.cpu), self.states, strict=True)
        )
        self.past += inputs.get("n_commit", counts)
        real = np.arange(length) < counts[:, None]
        return max(error(logits[index < counts[:, None]], expected[index < counts[:, None]]),
                   error(hidden[real], expected_hidden[real]))  # fmt: skip


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative RMS; 0 where nothing is compared."""
    if not expected.size:
        return 0.0
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
