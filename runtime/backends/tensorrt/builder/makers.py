"""What makes plans of a flavour: of which lowered graph, for which GPUs, by what versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltart.errors import BuildError
from deltart.manifest import GraphEntry
from deltart.runtime.backends.gpu.cuda import device_name
from deltart.runtime.backends.gpu.engine_manifest import Flavour, Profile
from deltart.runtime.backends.native.builder.job import FLAVOUR as NATIVE
from deltart.runtime.backends.native.builder.job import NativeJob
from deltart.runtime.backends.tensorrt.builder.job import TensorRtJob
from deltart.runtime.backends.tensorrt.builder.store import Job
from deltart.runtime.backends.tensorrt.library import TensorRt, load_tensorrt

TARGET = "tensorrt"
DEFAULT_GPUS = ("sm_80", "sm_89", "sm_120")
PRESENT_GPU = "current"


def target_of(flavour: Flavour | None) -> str:
    """The lowering that a flavour's plans are built of."""
    return NATIVE if flavour == NATIVE else TARGET


class PlanMaker(Protocol):
    """Makes the plans of one flavour.

    Attributes:
        target: whose graphs they are built of.
        versions: of what builds them, by name.
    """

    @property
    def flavour(self) -> Flavour: ...

    @property
    def target(self) -> str: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    def served(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """The GPUs that plans are to serve; raises BuildError for some of `asked` that they can't. None: the usual."""

    def job(
        self, graph: str, entry: GraphEntry, phase: str, gpus: tuple[str, ...], profile: Profile, content: bytes
    ) -> Job:
        """One plan to have of the lowered graph `content`."""


def plan_maker(flavour: Flavour | None, plugins: Path | None = None) -> PlanMaker:
    """The maker of a flavour's plans; None for the installed TensorRT's. `plugins`: TensorRT's C++ plugin library.

    Raises:
        BuildError, MissingDependencyError: as `load_tensorrt`.
    """
    return NativeMaker() if flavour == NATIVE else TensorRtMaker(load_tensorrt(flavour, plugins))


@dataclass(frozen=True)
class TensorRtMaker:
    """See PlanMaker."""

    library: TensorRt
    target: str = TARGET

    @property
    def flavour(self) -> Flavour:
        """See PlanMaker."""
        return self.library.flavour

    @property
    def versions(self) -> Mapping[str, str]:
        """See PlanMaker."""
        return {self.library.trt.__name__: self.library.version}

    def served(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """See PlanMaker."""
        asked = DEFAULT_GPUS if asked is None else asked
        if self.library.flavour != "rtx" or asked == (PRESENT_GPU,):
            return (device_name(),)
        known = [f"sm_{n[2:]}" for n in self.library.trt.ComputeCapability.__members__ if n.startswith("SM")]
        unknown = [gpu for gpu in asked if gpu not in known]
        if unknown or not asked:
            raise BuildError(
                f"--gpu {' '.join(unknown)}",
                f"some of {', '.join(known)}, or {PRESENT_GPU} alone for the GPU of this machine",
                "for another GPU, run `deltart build --flavour tensorrt` on a machine that has it",
            )
        return asked

    def job(
        self, graph: str, entry: GraphEntry, phase: str, gpus: tuple[str, ...], profile: Profile, content: bytes
    ) -> Job:
        """See PlanMaker."""
        return TensorRtJob(self.library, graph, entry, phase, gpus, profile, content)


@dataclass(frozen=True)
class NativeMaker:
    """See PlanMaker."""

    flavour: Flavour = NATIVE
    target: str = NATIVE

    @property
    def versions(self) -> Mapping[str, str]:
        """See PlanMaker: deltart's own says it all."""
        return {}

    def served(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """See PlanMaker."""
        if asked is not None:
            raise BuildError(
                f"--gpu {' '.join(asked)} with --flavour {NATIVE}",
                "no --gpu: a native plan serves every GPU that its kernels are compiled for",
                f"deltart plugins build --gpu {' '.join(asked)}",
            )
        return ()

    def job(
        self, graph: str, entry: GraphEntry, phase: str, gpus: tuple[str, ...], profile: Profile, content: bytes
    ) -> Job:
        """See PlanMaker."""
        return NativeJob(graph, entry, phase, profile, content, gpus)
