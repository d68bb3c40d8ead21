"""ONNX Runtime on the CPU: weights over memory maps, states bound in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnxruntime as ort

from deltart.artifact import load_manifest, read_graph
from deltart.dtypes import F32, U8
from deltart.errors import ArtifactError, GenerationError
from deltart.manifest import GraphEntry, Manifest, StateEntry
from deltart.runtime.backends.base import SlotState
from deltart.runtime.backends.host_slots import HostSlots
from deltart.runtime.backends.inputs import completed
from deltart.runtime.backends.mtp_drafts import MtpDrafts
from deltart.runtime.backends.onnx_border import check_border
from deltart.runtime.backends.ort_buffers import OrtBuffers
from deltart.runtime.backends.slots import Limits
from deltart.runtime.backends.weights import MappedWeights

# How stored weights become float32. Both are exact; they trade memory for speed.
#   folded: converted once at load (4 bytes a parameter in RAM)
#   mapped: converted at every use (nothing but the memory map)
WeightMode = Literal["folded", "mapped"]
# Where the session may map weights by itself: it copies those that it is handed, though they are maps too.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
PREFILL_TOKENS = 512  # of a call; bounds the size of intermediate tensors
MAX_DRAFTS = 4
_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 16),  # (numpy carrier, ONNX element type)
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 17),
}


class OrtState:
    """Buffers of every state tensor. A tensor that can't be updated in place has two, used in turn."""

    def __init__(self, entry: GraphEntry, target: str, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.buffers: dict[str, list[ort.OrtValue]] = {}
        self.turn = 0
        for state in entry.states:
            count = 1 if target in state.in_place else 2
            self.buffers[state.name] = [_zeros(state, slots, capacity) for _ in range(count)]

    def pair(self, name: str) -> tuple[ort.OrtValue, ort.OrtValue]:
        """(buffer to read, buffer to write) of this turn."""
        buffers = self.buffers[name]
        return buffers[self.turn % len(buffers)], buffers[(self.turn + 1) % len(buffers)]


class OrtBackend:
    """Runs an artifact's graphs of one target on the CPU.

    Args:
        artifact: folder written by `deltart export`.
        target: "ort" (contrib kernels) or "portable" (the reference bodies).
        weights: "folded" or "mapped", see WeightMode.
        threads: intra-op threads; ONNX Runtime's default when 0.
        profile: prefix of the files that sessions write their nodes' times to (`end_profiling`); none when empty.

    Raises:
        ArtifactError: the artifact is incomplete or its weights changed.
    """

    def __init__(
        self, artifact: Path, target: str = "ort", weights: WeightMode = "folded", threads: int = 0, profile: str = ""
    ) -> None:
        self.artifact, self.target = artifact, target
        self.manifest: Manifest = load_manifest(artifact)
        self._weights = MappedWeights(artifact, self.manifest)
        self._mode, self._threads, self._profile = weights, threads, profile
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._alternate = False  # whether graphs are called in turn, and must leave the cores to each other

    def new_state(self, graph: str, slots: int, capacity: int) -> OrtState:
        """Zeroed state; see Backend."""
        return OrtState(self._entry(graph), self.target, slots, capacity)

    def run(
        self, graph: str, state: SlotState, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """One call; see Backend. Tokens must fit: past_len + T <= state.capacity."""
        assert isinstance(state, OrtState)
        binding = self.session(graph).io_binding()
        for name, array in completed(self._entry(graph).inputs, inputs).items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name)
        for entry in self._entry(graph).states:
            current, following = state.pair(entry.name)
            binding.bind_ortvalue_input(entry.name, current)
            binding.bind_ortvalue_output(entry.output, following)
        self.session(graph).run_with_iobinding(binding)
        state.turn += 1
        return [value.numpy() for value in binding.get_outputs()[: len(outputs)]]

    @property
    def sees(self) -> bool:
        """See ServingBackend."""
        return self.manifest.vision is not None

    def see(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See ServingBackend; the graph's weights are read when it is first asked for."""
        assert self.manifest.vision is not None
        session = self.session(self.manifest.vision.graph)
        try:
            (embeds,) = session.run(["embeds"], dict(inputs))
        except Exception as error:  # the library's own classes; most likely it ran out of memory
            raise GenerationError(
                f"the vision graph failed on {list(inputs['patches'].shape)} patches: {error}",
                "memory for it",
                "send a smaller picture",
            ) from error
        rows: np.ndarray = embeds
        return rows

    @property
    def weight_bytes(self) -> int:
        """See Backend: float32 when folded, nothing but mapped pages else; packed weights are kept as they are.

        An embedding that isn't the head too stays in the file's pages.
        """
        return self._bytes_of(self.manifest.graphs)

    @property
    def held_bytes(self) -> int:
        """See ServingBackend."""
        return self._bytes_of(self._sessions)

    def _bytes_of(self, graphs: Iterable[str]) -> int:
        names = {name for graph in graphs for name in self.manifest.graphs[graph].weights}
        if self._mode == "mapped":
            return 0
        spec = self.manifest.spec
        if not spec["tie_word_embeddings"]:  # rows of it are read as they are stored
            names.discard(f"{spec['text_prefix']}embed_tokens.weight")
        entries = [self.manifest.tensors[name] for name in names]
        return sum(math.prod(e.shape) * (1 if e.dtype == U8.stored else F32.itemsize) for e in entries)

    def open_slots(self, slots: int, max_context: int, vocab_limit: int, drafts: bool = True) -> HostSlots:
        """See Backend."""
        capacity = max_context + 2 * MAX_DRAFTS + 2  # drafts may be fed up to the last token
        self._alternate = drafts and "mtp" in self.manifest.graphs
        text, mtp = self._buffers("model", slots, capacity), None
        if self._alternate:
            mtp = MtpDrafts(self._buffers("mtp", slots, capacity), slots, vocab_limit)
        used = [text, mtp.buffers] if mtp else [text]
        limits = Limits(
            slots=slots,
            capacity=capacity,
            prefill_tokens=PREFILL_TOKENS,
            draft_tokens=MAX_DRAFTS if mtp else 0,
            slot_bytes=sum(buffers.slot_bytes for buffers in used),
            token_bytes=sum(buffers.token_bytes for buffers in used),
        )
        return HostSlots(text, mtp, limits)

    def _buffers(self, graph: str, slots: int, capacity: int) -> OrtBuffers:
        return OrtBuffers(self.session(graph), self._entry(graph), self.target, slots, capacity)

    def session(self, graph: str) -> ort.InferenceSession:
        """The graph's session, created on first use."""
        if graph not in self._sessions:
            self._sessions[graph] = self._load(graph)
            self._weights.release()  # the session has converted or packed most of them into memory of its own
        return self._sessions[graph]

    def _load(self, graph: str) -> ort.InferenceSession:
        entry = self._entry(graph)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        if self._alternate:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        if self._profile:
            options.enable_profiling, options.profile_file_prefix = True, self._profile
        if self._weights.in_artifact:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(self.artifact.resolve()))
        else:
            values = [_ortvalue(self._weights[name]) for name in entry.weights]
            options.add_external_initializers(list(entry.weights), values)
        content = self._model(graph)
        try:
            return ort.InferenceSession(
                content,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"] if self._mode == "mapped" else None,
            )
        except Exception as error:  # the library's own classes derive from nothing narrower
            raise ArtifactError(f"ONNX Runtime {ort.__version__} can't load '{graph}': {error}") from error

    def _model(self, graph: str) -> bytes:
        """What to load: the exported graph, whose border is what the manifest says."""
        content = read_graph(self.artifact, self.manifest, graph, self.target)
        check_border(content, self.manifest.graphs[graph], self.manifest, f"'{graph}' for target '{self.target}'")
        return content

    def _entry(self, graph: str) -> GraphEntry:
        entry = self.manifest.graphs.get(graph)
        if entry is None or self.target not in entry.files:
            raise ArtifactError(
                f"{self.artifact} has no '{graph}' graph for target '{self.target}'",
                f"one of {', '.join(self.manifest.graphs)}",
                "export again, with the MTP head if the checkpoint has one",
            )
        return entry


def _zeros(state: StateEntry, slots: int, capacity: int) -> ort.OrtValue:
    sizes = {"B": slots, "capacity": capacity}
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in state.axes]
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, state.dtype))


def _ortvalue(array: np.ndarray) -> ort.OrtValue:
    if array.dtype not in _BITS:
        return ort.OrtValue.ortvalue_from_numpy(array)
    carrier, element_type = _BITS[array.dtype]
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(carrier), element_type)
