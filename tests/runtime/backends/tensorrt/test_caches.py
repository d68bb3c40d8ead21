"""Caches of timings and kernels over a TensorRT made here: what is kept, when, by which name, and what is forgiven."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltart.errors import BuildError
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry, Profile
from deltart.runtime.backends.tensorrt import executor as tensorrt_engine
from deltart.runtime.backends.tensorrt.caches import KernelCache, TimingCache, cache_path
from deltart.runtime.backends.tensorrt.executor import TensorRtExecutor
from deltart.runtime.backends.tensorrt.library import Messages, TensorRt

PLAN = b"a plan"


class FakeTensorRt:
    """The calls that an executor makes, in order; its cache takes blobs that begin with `accepts`."""

    def __init__(self, accepts: bytes = b"kernels") -> None:
        self.calls: list[str] = []
        self.accepts = accepts
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy")
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.device_memory_size_v2 = 7
        self.works = True

    def called(self, name: str, result: Any = True) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            said = [str(a) for a in arguments if not isinstance(a, FakeTensorRt)]
            self.calls.append(" ".join([name, *said]))
            return result

        return call

    def __getattr__(self, name: str) -> Any:
        if name in ("Runtime", "deserialize_cuda_engine", "create_runtime_config", "create_runtime_cache",
                    "create_execution_context"):  # fmt: skip
            return self.called(name, self)
        if name in ("set_execution_context_allocation_strategy", "set_runtime_cache"):
            return self.called(name)
        raise AttributeError(name)

    def deserialize(self, content: bytes) -> bool:
        self.calls.append(f"deserialize {content!r}")
        return content.startswith(self.accepts)

    def serialize(self) -> bytes:
        self.calls.append("serialize")
        return b"kernels, compiled"

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append("execute")
        return self.works


def executor(fake: FakeTensorRt, folder: Path, phase: str = "decode", flavour: str = "rtx") -> TensorRtExecutor:
    (folder / "model.plan").write_bytes(PLAN)
    entry = PlanEntry(
        "model.plan", "model", phase, "", hashlib.sha256(PLAN).hexdigest(), 0, flavour, "1.7", [], Profile({}), [], {},
        "", 0, 0.0,
    )  # fmt: skip
    fake.__version__ = "1.7"  # type: ignore[attr-defined]
    return TensorRtExecutor(TensorRt(flavour, fake, None, Messages()), folder / "model.plan", entry)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The GPU and driver that an executor finds."""
    found = {"gpu": "NVIDIA L4 sm_89", "driver": "13000"}
    monkeypatch.setattr(tensorrt_engine, "device_name", lambda: found["gpu"])
    monkeypatch.setattr(tensorrt_engine, "driver_version", lambda: found["driver"])
    return found


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kernels"))


def test_a_context_is_made_of_the_configured_cache_and_kept_after_the_first_run(tmp_path: Path) -> None:
    fake = FakeTensorRt()
    made = executor(fake, tmp_path)
    assert fake.calls[2:] == [
        "create_runtime_config", "set_execution_context_allocation_strategy user", "create_runtime_cache",
        "set_runtime_cache", "create_execution_context",
    ]  # fmt: skip
    assert fake.dynamic_shapes_kernel_specialization_strategy == "eager" and not kept(tmp_path)
    made.enqueue(0)
    made.enqueue(0)
    assert fake.calls[7:] == ["execute", "serialize", "execute"]
    assert [path.read_bytes() for path in kept(tmp_path)] == [b"kernels, compiled"]
    assert not list(tmp_path.glob(".*"))


def test_a_second_process_loads_what_was_kept(tmp_path: Path) -> None:
    executor(FakeTensorRt(), tmp_path).enqueue(0)
    fake = FakeTensorRt()
    executor(fake, tmp_path)
    assert fake.calls[4:7] == ["create_runtime_cache", "deserialize b'kernels, compiled'", "set_runtime_cache"]


def test_a_refused_cache_is_built_again(tmp_path: Path) -> None:
    executor(FakeTensorRt(), tmp_path).enqueue(0)
    (path,) = kept(tmp_path)
    path.write_bytes(b"damaged")
    made = executor(FakeTensorRt(), tmp_path)
    made.enqueue(0)
    assert path.read_bytes() == b"kernels, compiled"


@pytest.mark.parametrize("change", [{"gpu": "NVIDIA H100 sm_90"}, {"driver": "13010"}])
def test_another_machine_has_its_own(tmp_path: Path, machine: dict[str, str], change: dict[str, str]) -> None:
    executor(FakeTensorRt(), tmp_path).enqueue(0)
    machine |= change
    fake = FakeTensorRt()
    executor(fake, tmp_path).enqueue(0)
    assert not any(call.startswith("deserialize b") for call in fake.calls) and len(kept(tmp_path)) == 2


def test_a_folder_that_takes_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = executor(FakeTensorRt(), tmp_path)

    def refuse(*arguments: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    made.enqueue(0)
    assert not kept(tmp_path)


def test_a_call_that_failed_keeps_nothing(tmp_path: Path) -> None:
    fake = FakeTensorRt()
    made = executor(fake, tmp_path)
    fake.works = False
    with pytest.raises(BuildError):
        made.enqueue(0)
    assert "serialize" not in fake.calls and not kept(tmp_path)


def test_prefill_does_not_wait_for_a_kernel_of_every_length(tmp_path: Path) -> None:
    fake = FakeTensorRt()
    executor(fake, tmp_path, phase="prefill")
    assert fake.dynamic_shapes_kernel_specialization_strategy == "lazy"


def test_full_tensorrt_compiles_nothing_at_run_time(tmp_path: Path) -> None:
    fake = FakeTensorRt()
    executor(fake, tmp_path, flavour="tensorrt").enqueue(0)
    assert fake.calls[2:] == ["create_execution_context user", "execute"] and not kept(tmp_path)


class FakeConfig:
    """An IBuilderConfig whose timing caches accept contents that begin with `accepts`, and empty ones."""

    def __init__(self, accepts: bytes) -> None:
        self.accepts, self.attached = accepts, b"none"

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content, serialize=lambda: content + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content and not cache.content.startswith(self.accepts):
            return False
        self.attached = cache.content
        return True


def test_timings_go_from_build_to_build(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "timings"
    for expected in (b"", b"+", b"++"):
        config, timings = FakeConfig(b"+"), TimingCache(path)
        timings.attach(config)
        assert config.attached == expected
        timings.save()
    assert path.read_bytes() == b"+++"


def test_timings_of_another_gpu_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"of another GPU")
    config, timings = FakeConfig(b"+"), TimingCache(path)
    timings.attach(config)
    timings.save()
    assert config.attached == b"" and path.read_bytes() == b"+"


def test_a_name_for_every_combination(tmp_path: Path) -> None:
    parts = [("a", "b", "c"), ("a", "b", "d"), ("a", "bc"), ("ab", "c")]
    assert len({cache_path(tmp_path, "x", "kernels", *p) for p in parts}) == len(parts)


def test_real_runtime_config_has_these_calls() -> None:
    """The names that the fakes above stand for, in the TensorRT-RTX that is installed."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for owner, names in {
        trt.ICudaEngine: ["create_runtime_config", "create_execution_context", "device_memory_size_v2"],
        trt.IRuntimeConfig: ["set_execution_context_allocation_strategy", "create_runtime_cache", "set_runtime_cache",
                             "dynamic_shapes_kernel_specialization_strategy"],
        trt.IRuntimeCache: ["serialize", "deserialize"],
        trt.IBuilderConfig: ["create_timing_cache", "set_timing_cache"],
    }.items():  # fmt: skip
        assert all(hasattr(owner, name) for name in names)
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER and KernelCache
