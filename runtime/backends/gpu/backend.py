"""Plans on one GPU, TensorRT's or native: weights streamed once, states in place, decode steps as CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError, GenerationError
from deltart.manifest import Manifest
from deltart.plugins.sampler.inputs import Shape
from deltart.runtime.backends.base import SlotState
from deltart.runtime.backends.gpu import calls as calls
from deltart.runtime.backends.gpu.buffers import GpuBuffers
from deltart.runtime.backends.gpu.cuda import Cuda, CudaDriver, Graph, captured
from deltart.runtime.backends.gpu.decode import DeviceLoop
from deltart.runtime.backends.gpu.engine_manifest import (
    CAPTURED,
    FRAME,
    SPECULATE_TOKENS,
    Binding,
    Flavour,
    PlanEntry,
    engine_folder,
    load_engine,
)
from deltart.runtime.backends.gpu.executor import Executor, Load
from deltart.runtime.backends.gpu.lm_head import load_quantized
from deltart.runtime.backends.gpu.slots import GpuSlots
from deltart.runtime.backends.gpu.weight_stream import ALIGNMENT, align, layout, reads, stream_weights
from deltart.runtime.backends.inputs import completed
from deltart.runtime.backends.mtp_drafts import MtpDrafts
from deltart.runtime.backends.slots import Limits, Slots
from deltart.runtime.backends.tensorrt.load import built_flavour, executors
from deltart.runtime.backends.weights import MappedWeights

# Drafts of a step: with the tokens that were right before them they make one call of the plan "speculate".
MAX_DRAFTS = (SPECULATE_TOKENS - 1) // 2


@dataclass
class TensorRtState:
    """States of `slots` sequences on the device. Graphs captured over them live and die with them."""

    slots: int
    capacity: int
    sizes: Mapping[str, int]
    addresses: Mapping[str, int]  # by state name
    graphs: dict[tuple[Any, ...], Graph | None] = field(default_factory=dict)

    def at(self, binding: Binding, row: int) -> int:
        """Address of slot `row` of a state."""
        return self.addresses[binding.name] + row * binding.nbytes({**self.sizes, "B": 1})


@dataclass
class _Plan:
    """A loaded plan with its input and output buffers: device addresses and their pinned mirrors."""

    entry: PlanEntry
    executor: Executor
    device: dict[str, int]
    host: dict[str, np.ndarray]


@dataclass
class _DecodeStep:
    """The decode plan on all slots of a state, for a `DeviceLoop`."""

    backend: TensorRtBackend
    plan: _Plan
    state: TensorRtState

    def bind(self, at: Mapping[str, int]) -> None:
        self.backend.bind(self.plan, self.state, 0, self._sizes, at)

    def enqueue(self) -> None:
        self.plan.executor.enqueue(self.backend.cuda.stream)
        target = self.plan.host["hidden"][: self._hidden.nbytes(self._sizes)]
        self.backend.cuda.to_host(target, self.plan.device["hidden"])

    def capturable(self) -> bool:
        return self.plan.executor.capturable(self.backend.cuda.stream)

    def hidden(self) -> np.ndarray:
        return _view(self.plan.host["hidden"], self._hidden, self._sizes)[:, 0].astype(np.float32)

    @property
    def _sizes(self) -> dict[str, int]:
        return {**self.state.sizes, "T": 1, "L": 1}

    @property
    def _hidden(self) -> Binding:
        return next(b for b in self.plan.entry.by_role["output"] if b.name == "hidden")


class TensorRtBackend:
    """Runs an artifact's plans; see Backend.

    Args:
        artifact: folder with plans built by `deltart build`.
        flavour: which plans; None for the installed TensorRT's, else native ones.
        cuda: the device; the first GPU when None.
        load: makes the executor of a plan; the flavour's own when None.
        plugins: the C++ plugin library; None for the Python plugin classes. Plans of either run with either.

    Raises:
        ArtifactError: the artifact has no plans, or its weights changed.
        MissingDependencyError: TensorRT, cuda-bindings, a GPU or the kernel of an op is missing.
    """

    def __init__(
        self, artifact: Path, flavour: Flavour | None = None, *, cuda: Cuda | None = None, load: Load | None = None,
        plugins: Path | None = None,
    ) -> None:  # fmt: skip
        self.artifact = artifact
        self.manifest: Manifest = load_manifest(artifact)
        self.engine = load_engine(artifact, flavour or built_flavour(artifact))
        self._folder = engine_folder(artifact, self.engine.flavour)
        self._load = load or executors(self.engine, plugins, lambda: self.cuda)
        self.cuda: Cuda = CudaDriver() if cuda is None else cuda
        self._plans: dict[str, _Plan] = {}
        self._weights = self._stream()

    def new_state(self, graph: str, slots: int, capacity: int) -> TensorRtState:
        """Zeroed state; see Backend. The device holds all of the plan's slots, used or not."""
        engine = self.engine
        if slots > engine.slots or capacity > engine.max_context:
            raise ArtifactError(
                f"a state of {slots} slots and {capacity} tokens",
                f"at most {engine.slots} slots and {engine.max_context} tokens, as built",
                f"deltart build {self.artifact} --slots {slots} --max-context {capacity}",
            )
        sizes = {"B": engine.slots, "capacity": capacity}
        addresses, end = {}, 0
        for binding in self._entry(graph, "decode").by_role["state"]:
            addresses[binding.name] = end
            end += align(binding.nbytes(sizes))
        base = self.cuda.allocate(end)
        self.cuda.zero(base, end)
        state = TensorRtState(slots, capacity, sizes, {name: base + at for name, at in addresses.items()})
        weakref.finalize(state, _release, self.cuda, base, state.graphs)
        return state

    def run(
        self, graph: str, state: SlotState, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """One call; see Backend. Short calls run all slots at once, long ones prefill slot by slot."""
        assert isinstance(state, TensorRtState)
        plans = self._entries(graph)
        sizes = calls.check_inputs(plans["decode"], inputs, state.slots, state.capacity)
        phase = "prefill" if "vision_index" in inputs else calls.phase_of(plans, sizes)
        if phase == "prefill":
            return self._prefill(graph, state, inputs, outputs, sizes)
        padded = calls.pad_rows(plans[phase], inputs, self.engine.slots)
        results = self._call(f"{graph}.{phase}", state, 0, padded, outputs)
        return [array[: state.slots].astype(np.float32) for array in results]

    @property
    def sees(self) -> bool:
        """See ServingBackend: there is a plan of the tower."""
        return any(plan.phase == FRAME for plan in self.engine.plans.values())

    def see(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See ServingBackend: a frame a call of the plan, which is loaded when it is first asked for."""
        assert self.manifest.vision is not None
        plan = self._plan(f"{self.manifest.vision.graph}.{FRAME}")
        sizes = {"F": 1, "S": inputs["patches"].shape[1]}
        sizes["R"] = sizes["S"] // self.manifest.vision.merge**2
        if not plan.entry.profile.fits(sizes):
            most = plan.entry.profile.axes["S"][2]
            raise GenerationError(f"a frame of {sizes['S']} patches", f"at most {most}", "send a smaller picture")
        for binding in [*plan.entry.by_role["input"], *plan.entry.by_role["output"]]:
            plan.executor.bind(binding.name, plan.device[binding.name], binding.shape(sizes))
        (embeds,) = plan.entry.by_role["output"]
        rows = []
        for frame in inputs["patches"]:
            self._write(plan, {**inputs, "patches": frame[None]})
            self._enqueue(plan, sizes, [embeds.name])
            self.cuda.synchronize()
            rows.append(_view(plan.host[embeds.name], embeds, sizes).astype(np.float32))
        return np.concatenate(rows)

    @property
    def weights(self) -> Mapping[str, int]:
        """Addresses of all weights on the device, by name."""
        return self._weights

    @property
    def weight_bytes(self) -> int:
        """See Backend: nothing of the host's memory."""
        return 0

    @property
    def held_bytes(self) -> int:
        """See ServingBackend."""
        return 0

    def open_slots(self, slots: int, max_context: int, vocab_limit: int, drafts: bool = True) -> Slots:
        """See Backend."""
        capacity = min(max_context + 2 * MAX_DRAFTS + 2, self.engine.max_context)
        text, mtp = GpuBuffers(self, "model", slots, capacity), None
        if drafts and self._entries("mtp"):
            mtp = MtpDrafts(GpuBuffers(self, "mtp", slots, capacity), slots, vocab_limit)
        used = [text, mtp.buffers] if mtp else [text]
        limits = Limits(
            slots=slots,
            capacity=capacity,
            prefill_tokens=self.engine.chunk,
            draft_tokens=MAX_DRAFTS if mtp else 0,
            slot_bytes=sum(buffers.slot_bytes for buffers in used),
            token_bytes=sum(buffers.token_bytes for buffers in used),
        )
        return GpuSlots(text, mtp, limits, self.decode_loop(text.state, vocab_limit))

    def decode_loop(self, state: TensorRtState, vocab_limit: int) -> DeviceLoop:
        """Decode steps on the device over all slots of a text state; ids from `vocab_limit` on are never drawn."""
        step = _DecodeStep(self, self._plan("model.decode"), state)
        return DeviceLoop(self.cuda, step, Shape(self.engine.slots, self.manifest.vocab_size, vocab_limit))

    def states_of(self, graph: str) -> list[Binding]:
        """The states of a graph, as its plans bind them."""
        return self._entry(graph, "decode").by_role["state"]

    def _prefill(
        self,
        graph: str,
        state: TensorRtState,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        sizes: Mapping[str, int],
    ) -> list[np.ndarray]:
        calls.check_prefill(inputs)
        name = f"{graph}.prefill"
        entry = self._entry(graph, "prefill")
        inputs = completed(entry.by_role["input"], inputs)
        by_name = {b.name: b for b in entry.by_role["output"]}
        results = {o: np.zeros(by_name[o].shape(sizes), np.float32) for o in outputs}
        for row in range(state.slots):
            index = inputs["logit_index"][row]
            for piece in calls.pieces(int(inputs["n_tokens"][row]), index, entry):
                cut = calls.piece_inputs(entry, inputs, row, piece)
                for output, array in zip(outputs, self._call(name, state, row, cut, outputs), strict=True):
                    if "T" in by_name[output].axes:
                        results[output][row, piece.begin : piece.end] = array[0]
                    else:
                        for place, position in enumerate(piece.positions):
                            results[output][row, index == piece.begin + position] = array[0, place]
        return [results[o] for o in outputs]

    def _call(
        self, name: str, state: TensorRtState, row: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """Run one plan on slots from `row` on; the results are copies."""
        plan, cuda = self._plan(name), self.cuda
        sizes = {"B": len(inputs["n_tokens"]), "capacity": state.capacity}
        sizes |= {"T": inputs["input_ids"].shape[1], "L": inputs["logit_index"].shape[1]}
        if "vision_embeds" in inputs:
            sizes["M"] = len(inputs["vision_embeds"])
        self._write(plan, inputs)
        self._advance(plan, state, row, sizes, tuple(outputs))
        cuda.synchronize()
        wanted = {b.name: b for b in plan.entry.by_role["output"] if b.name in outputs}
        return [_view(plan.host[o], wanted[o], sizes).copy() for o in outputs]

    def _write(self, plan: _Plan, inputs: Mapping[str, np.ndarray]) -> None:
        """Lay the plan's inputs down where `_enqueue` takes them from."""
        for binding in plan.entry.by_role["input"]:
            values = np.ascontiguousarray(inputs[binding.name], calls.NUMPY[binding.dtype])
            plan.host[binding.name][: values.nbytes] = values.reshape(-1).view(np.uint8)

    def _advance(
        self, plan: _Plan, state: TensorRtState, row: int, sizes: Mapping[str, int], outputs: tuple[str, ...]
    ) -> None:
        """Enqueue a call: the first of its kind plainly, later ones as a CUDA graph captured at the second."""
        key = (plan.entry.key, sizes["T"], sizes["L"], outputs)
        graph = state.graphs.get(key)
        if graph is not None:
            self.cuda.launch(graph)
            return
        self.bind(plan, state, row, sizes)
        if (
            plan.entry.phase not in CAPTURED
            or key not in state.graphs
            or not plan.executor.capturable(self.cuda.stream)
        ):
            self._enqueue(plan, sizes, outputs)
            state.graphs.setdefault(key, None)
            return
        state.graphs[key] = captured(self.cuda, lambda: self._enqueue(plan, sizes, outputs))
        self.cuda.launch(state.graphs[key])

    def _enqueue(self, plan: _Plan, sizes: Mapping[str, int], outputs: Sequence[str]) -> None:
        for binding in plan.entry.by_role["input"]:
            self.cuda.to_device(plan.device[binding.name], plan.host[binding.name][: binding.nbytes(sizes)])
        plan.executor.enqueue(self.cuda.stream)
        for binding in plan.entry.by_role["output"]:
            if binding.name in outputs:
                self.cuda.to_host(plan.host[binding.name][: binding.nbytes(sizes)], plan.device[binding.name])

    def bind(
        self, plan: _Plan, state: TensorRtState, row: int, sizes: Mapping[str, int], at: Mapping[str, int] | None = None
    ) -> None:
        """Bind slots from `row` on, and inputs and outputs to the plan's buffers or, by name, to `at`."""
        places = {**plan.device, **(at or {})}
        for binding in [*plan.entry.by_role["input"], *plan.entry.by_role["output"]]:
            plan.executor.bind(binding.name, places[binding.name], binding.shape(sizes))
        for binding, result in zip(plan.entry.by_role["state"], plan.entry.by_role["state_output"], strict=True):
            address = state.at(binding, row)
            if address % ALIGNMENT:
                raise ArtifactError(
                    f"slot {row} of {binding.name} is not aligned to {ALIGNMENT} bytes",
                    "states whose slots are multiples of it",
                    "build with --slots 1 for this model",
                )
            plan.executor.bind(binding.name, address, binding.shape(sizes))
            plan.executor.bind(result.name, address, result.shape(sizes))

    def _plan(self, name: str) -> _Plan:
        """The loaded plan, its weights bound; loads it on first use."""
        if name not in self._plans:
            entry = self.engine.plans[name]
            executor = self._load(self._folder / entry.file, entry)
            largest = {axis: sizes[2] for axis, sizes in entry.profile.axes.items()}
            sizes = {b.name: b.nbytes(largest) for role in ("input", "output") for b in entry.by_role[role]}
            device = {n: self.cuda.allocate(nbytes) for n, nbytes in sizes.items()}
            host = {n: self.cuda.pinned(nbytes) for n, nbytes in sizes.items()}
            for binding in entry.by_role["weight"]:
                executor.bind(binding.name, self._weights[binding.name], binding.shape({}))
            # Its own scratch, since captured graphs hold the address.
            executor.use_scratch(self.cuda.allocate(executor.scratch_bytes), executor.scratch_bytes)
            self._plans[name] = _Plan(entry, executor, device, host)
        return self._plans[name]

    def _stream(self) -> dict[str, int]:
        """Bring every weight of every plan to the device; addresses by name."""
        names = {b.name for plan in self.engine.plans.values() for b in plan.by_role["weight"]}
        head = self.engine.lm_head
        stored = names if head is None else names - {head.codes, head.scale}
        tensors = {name: self.manifest.tensors[name] for name in sorted(stored)}
        place = layout(tensors)
        base = self.cuda.allocate(place.nbytes)
        paths = MappedWeights(self.artifact, self.manifest).paths
        stream_weights(self.cuda, paths, reads(tensors, place), base)
        found = {name: base + offset for name, offset in place.offsets.items()}
        if head is not None:
            found |= load_quantized(self.cuda, paths, head, self.manifest.tensors[head.weight])
        return found

    def _entries(self, graph: str) -> dict[str, PlanEntry]:
        return {plan.phase: plan for plan in self.engine.plans.values() if plan.graph == graph}

    def _entry(self, graph: str, phase: str) -> PlanEntry:
        entries = self._entries(graph)
        if phase not in entries:
            raise ArtifactError(
                f"{self._folder} has no plan of '{graph}'", ", ".join(self.engine.plans), "run `deltart build` again"
            )
        return entries[phase]


def _view(host: np.ndarray, binding: Binding, sizes: Mapping[str, int]) -> np.ndarray:
    return host[: binding.nbytes(sizes)].view(calls.NUMPY[binding.dtype]).reshape(binding.shape(sizes))


def _release(cuda: Cuda, base: int, graphs: dict[tuple[Any, ...], Graph | None]) -> None:
    cuda.synchronize()
    for graph in graphs.values():
        if graph is not None:
            cuda.discard(graph)
    cuda.free(base)
