"""The invariant behind speculation: a slot's state is the one after its committed tokens, whatever drafts were fed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltart.artifact import load_manifest
from deltart.plugins.cpu_shim.host_cuda import HostCuda, memory
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.base import SlotState
from deltart.runtime.backends.gpu.backend import TensorRtBackend, TensorRtState
from deltart.runtime.backends.gpu.calls import NUMPY
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend, OrtState
from deltart.verify.ort_executor import OrtExecutor
from support.cases import VOCAB
from support.host_gpu import write_engine

ROWS, CAPACITY, CHUNK = 3, 64, 16
LOGITS, STATE = 5e-4, 1e-4  # absolute, and relative RMS: one body of the delta rule against another
Backend = OrtBackend | TensorRtBackend
Arrays = dict[str, np.ndarray]
Count = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def artifact(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(lowered, tmp_path_factory.mktemp("commit") / "artifact"))
    write_engine(folder, ROWS, max_context=CAPACITY, chunk=CHUNK)
    return folder


@pytest.fixture(scope="module")
def reference(artifact: Path) -> OrtBackend:
    return OrtBackend(artifact)


@pytest.fixture(scope="module", params=["portable", "ort", "gpu"])
def backend(request: pytest.FixtureRequest, artifact: Path) -> Backend:
    if request.param != "gpu":
        return OrtBackend(artifact, request.param)
    graphs = load_manifest(artifact).graphs
    load = lambda path, entry: OrtExecutor(artifact, entry, graphs[entry.graph])  # noqa: E731
    return TensorRtBackend(artifact, "rtx", cuda=HostCuda(), load=load)


def read(backend: Backend, state: SlotState) -> Arrays:
    """Copies of the states of all slots, by name."""
    if isinstance(state, OrtState):
        return {name: state.pair(name)[0].numpy().copy() for name in state.buffers}
    assert isinstance(state, TensorRtState) and isinstance(backend, TensorRtBackend)
    found = {}
    for binding in backend.engine.plans["model.decode"].by_role["state"]:
        raw = memory(state.at(binding, 0), binding.nbytes(state.sizes))
        found[binding.name] = raw.view(NUMPY[binding.dtype]).reshape(binding.shape(state.sizes))[: state.slots].copy()
    return found


def fed(
    backend: Backend, state: SlotState, ids: np.ndarray, past: np.ndarray, n: np.ndarray, commit: np.ndarray
) -> np.ndarray:
    """Logits [B, T, V] of every token of one call."""
    everywhere = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    (logits,) = backend.run("model", state, text_inputs(ids, past, n, everywhere, commit), ["logits"])
    return logits


def plain(backend: OrtBackend, ids: list[int]) -> tuple[np.ndarray, Arrays]:
    """Logits [T, V] and the states of one row that was fed `ids` and nothing else."""
    state, n = backend.new_state("model", 1, CAPACITY), np.array([len(ids)], np.int32)
    if not ids:
        return np.zeros((0, VOCAB)), read(backend, state)
    return fed(backend, state, np.array([ids]), np.zeros(1, np.int32), n, n)[0], read(backend, state)


def calls(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """(n_tokens, n_commit) of each row: prefill, then speculation and plain decode, rows idle now and then."""
    prompts = rng.integers(0, 20, ROWS)
    made = [(prompts, prompts)]
    for step in range(6):
        n = rng.integers(0, 6, ROWS) if step % 3 else rng.integers(0, 2, ROWS)
        made.append((n, rng.integers(0, n + 1) if step % 3 else n))
    return [(n.astype(np.int32), commit.astype(np.int32)) for n, commit in made]


def holds(backend: Backend, reference: OrtBackend, seed: int, counted: Count = lambda n, commit: commit) -> bool:
    """Whether every output and every state of a random schedule is what `reference` gives for the committed tokens.

    `counted` is what the graph is told to commit after the prompts.
    """
    rng = np.random.default_rng(seed)
    history: list[list[int]] = [[] for _ in range(ROWS)]
    state = backend.new_state("model", ROWS, CAPACITY)
    for step, (n, commit) in enumerate(calls(rng)):
        past = np.array([len(row) for row in history], np.int32)
        ids = rng.integers(0, VOCAB, (ROWS, max(1, int(n.max()))))
        logits = fed(backend, state, ids, past, n, counted(n, commit) if step else commit)
        found = read(backend, state)
        for row, kept in enumerate(history):
            expected, after = plain(reference, [*kept, *ids[row, : n[row]].tolist()])
            if not close_logits(logits[row, : n[row]], expected[past[row] :]):
                return False
            kept += ids[row, : commit[row]].tolist()
            if commit[row] < n[row]:
                after = plain(reference, kept)[1]
            if not same_state({name: array[row] for name, array in found.items()}, after, len(kept)):
                return False
    return True


def close_logits(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max(initial=0) <= LOGITS)


def same_state(found: Arrays, expected: Arrays, past: int) -> bool:
    """Whether S and the convolution's inputs are equal, and K and V up to `past`."""
    for name, array in found.items():
        mine, other = array, expected[name][0]
        if name.endswith((".k", ".v")):
            mine, other = mine[:, :past], other[:, :past]
        if mine.size and np.any(other) and relative_rms(mine, other) > STATE:
            return False
        if not np.any(other) and np.any(mine):
            return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_drafts_leave_no_trace(backend: Backend, reference: OrtBackend, seed: int) -> None:
    assert holds(backend, reference, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_drafts_leave_no_trace_in_many_schedules(backend: Backend, reference: OrtBackend, seed: int) -> None:
    assert holds(backend, reference, seed)


@pytest.mark.parametrize(
    "wrong",
    [lambda n, commit: n, lambda n, commit: np.minimum(commit + 1, n), lambda n, commit: np.maximum(commit - 1, 0)],
    ids=["all tokens", "one more", "one less"],
)
def test_a_wrong_count_is_seen(backend: Backend, reference: OrtBackend, wrong: Count) -> None:
    assert not holds(backend, reference, 0, wrong)
