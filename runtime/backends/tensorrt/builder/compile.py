"""One TensorRT plan from one lowered graph: parse with plugins, check, build. Nothing here touches the disk."""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx

from deltart.errors import BuildError, DeltaRTError
from deltart.plugins.spec import DOMAIN
from deltart.plugins.trt_plugin import record_failure
from deltart.runtime.backends.gpu.engine_manifest import Binding, Profile, read_binding
from deltart.runtime.backends.tensorrt.caches import TimingCache
from deltart.runtime.backends.tensorrt.library import TensorRt

Log = Callable[[str], None]
Progress = Callable[[float], None]  # takes the share of a plan that is built; it never falls


@dataclass(frozen=True)
class Compiled:
    """A serialized plan. Its bindings have no roles; `plugins` counts composite nodes by op."""

    plan: memoryview
    bindings: list[Binding]
    plugins: Mapping[str, int]
    scratch_bytes: int


def compile_plan(
    library: TensorRt,
    content: bytes,
    gpus: Sequence[str],
    profile: Profile,
    progress: Progress = lambda share: None,
    timings: TimingCache | None = None,
) -> Compiled:
    """Build the ONNX model `content` under `profile` for `gpus` ("sm_89"; any other text for the present GPU).

    Args:
        timings: what earlier builds measured, for flavour "tensorrt"; this build adds to it.

    Raises:
        BuildError: TensorRT refuses the graph, an op has no plugin, or a plugin got lost on the way.
        DeltaRTError: whatever else a plugin raised.
    """
    trt = library.trt
    model = onnx.load_model_from_string(content)
    composites = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    inputs, outputs = ([read_binding(v) for v in values] for values in (model.graph.input, model.graph.output))
    library.messages.clear()
    with _held_interrupts():
        builder = trt.Builder(library.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _parse(library, network, content)
        config = _configure(library, builder, inputs, gpus, profile)
        config.progress_monitor = _monitor(trt, progress)
        if timings is not None:
            timings.attach(config)
        plan = builder.build_serialized_network(network, config)
    failure = library.take_failure()
    if plan is None or failure is not None:
        raise _failed(library, "TensorRT could not build the plan", failure)
    if timings is not None:
        timings.save()
    view = memoryview(plan)
    _check_plugins(trt, network, view, composites)
    return Compiled(view, [*inputs, *outputs], dict(composites), _scratch_bytes(library.messages.info))


def _check_plugins(trt: Any, network: Any, plan: memoryview, composites: Counter[str]) -> None:
    """Every composite node must be a plugin layer of the network, and be named in the plan."""
    layers = sum(network.get_layer(i).type == trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
    if layers != composites.total():
        raise BuildError(f"{layers} plugin layers came of {composites.total()} composite nodes", "one for each")
    content = bytes(plan)
    missing = [op for op, count in composites.items() if content.count(op.encode()) < count]
    if missing:
        raise BuildError(f"the plan lost plugins: {', '.join(missing)}", "every composite node in the plan")


@contextmanager
def _held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C and its like back while TensorRT calls into Python: an exception from there ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, lambda number, frame: held.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _parse(library: TensorRt, network: Any, content: bytes) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if parser.parse(content):
        return
    problems = [parser.get_error(i) for i in range(parser.num_errors)]
    missing = sorted({p.node_operator() for p in problems if "plugin" in p.desc().lower()})
    if missing:
        raise BuildError(
            f"TensorRT has no plugin for {', '.join(missing)}", "every composite op registered as a plugin",
            "a newer export needs the plugins of the same version",
        )  # fmt: skip
    raise _failed(
        library, f"TensorRT can't read the graph: {'; '.join(str(p.desc()) for p in problems)}", library.take_failure()
    )


def _configure(
    library: TensorRt, builder: Any, inputs: Sequence[Binding], gpus: Sequence[str], profile: Profile
) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if library.flavour == "rtx":
        config.num_compute_capabilities = len(gpus)
        for position, gpu in enumerate(gpus):
            config.set_compute_capability(_capability(trt, gpu), position)
    shapes = builder.create_optimization_profile()
    bounds = [{axis: sizes[i] for axis, sizes in profile.axes.items()} for i in range(3)]
    for tensor in inputs:
        if any(isinstance(axis, str) for axis in tensor.axes):
            shapes.set_shape(tensor.name, *(tensor.shape(sizes) for sizes in bounds))
    config.add_optimization_profile(shapes)
    return config


def _capability(trt: Any, gpu: str) -> Any:
    """TensorRT-RTX's name for "sm_89"; any other text is the present GPU, which may be one it has no name for."""
    members = trt.ComputeCapability.__members__
    return members[f"SM{gpu[3:]}"] if gpu.startswith("sm_") else members["CURRENT"]


def _monitor(trt: Any, progress: Progress) -> Any:
    """An IProgressMonitor; an error in `progress` may not cross into TensorRT."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: list[list[Any]] = []  # those that run, each inside the one before: [name, steps, done]
            self.share = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.phases.append([phase, steps, 0])
            self.tell()

        def step_complete(self, phase: str, step: int) -> bool:
            for running in self.phases:
                if running[0] == phase:
                    running[2] = step + 1
            self.tell()
            return True  # to cancel would corrupt the heap

        def phase_finish(self, phase: str) -> None:
            self.phases = [running for running in self.phases if running[0] != phase]
            self.tell()

        def tell(self) -> None:
            share = 0.0 if self.phases else 1.0
            for _, steps, done in reversed(self.phases):
                share = min((done + share) / max(steps, 1), 1.0)
            self.share = max(self.share, share)
            try:
                progress(self.share)
            except BaseException as error:
                record_failure(error)

    return Monitor()


def _failed(library: TensorRt, found: str, failure: Exception | None) -> DeltaRTError:
    if isinstance(failure, DeltaRTError):
        return failure
    said = [*([] if failure is None else [repr(failure)]), *library.messages.errors[:5]]
    return BuildError(f"{found}: {' | '.join(said) or 'it gave no reason'}")


def _scratch_bytes(info: Sequence[str]) -> int:
    """Activation memory of the plan: TensorRT tells it in its log, and otherwise only with a GPU."""
    found = [re.search(r"Total Activation Memory: (\d+) bytes", line) for line in info]
    sizes = [int(match[1]) for match in found if match]
    if not sizes:
        raise BuildError("TensorRT no longer logs the plan's activation memory", "a 'Total Activation Memory' line")
    return max(sizes)
