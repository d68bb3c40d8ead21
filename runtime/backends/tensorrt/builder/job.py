"""One TensorRT plan to have: what it is made of, its name in caches, and its making."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from deltart.manifest import GraphEntry
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry, Profile
from deltart.runtime.backends.tensorrt.builder.compile import Progress, compile_plan
from deltart.runtime.backends.tensorrt.caches import TimingCache, cache_path
from deltart.runtime.backends.tensorrt.library import TensorRt


@dataclass(frozen=True)
class TensorRtJob:
    """See store.Job. `content` is the lowered graph, `entry` what the manifest says of it."""

    library: TensorRt
    graph: str
    entry: GraphEntry
    phase: str
    gpus: tuple[str, ...]
    profile: Profile
    content: bytes

    @property
    def name(self) -> str:
        """See Job."""
        return f"{self.graph}.{self.phase}"

    @property
    def file(self) -> str:
        """See Job."""
        return f"{self.name}.{self.key}.plan"

    def warnings(self) -> list[str]:
        """See Job: TensorRT's."""
        return [f"TensorRT warns: {warning}" for warning in self.library.messages.warned()]

    @property
    def onnx_sha256(self) -> str:
        """Hash of the lowered graph."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def key(self) -> str:
        """See Job."""
        library = self.library
        return plans.plan_key(
            self.onnx_sha256, library.flavour, library.version, self.gpus, self.profile, library.plugin_code
        )

    def build(self, timings_folder: Path, progress: Progress) -> tuple[memoryview, PlanEntry]:
        """The plan and what is known of it. Raises as `compile_plan` does.

        Args:
            timings_folder: where flavour "tensorrt" keeps what it measures.
        """
        began = time.monotonic()
        timings = None
        if self.library.flavour == "tensorrt":
            timings = TimingCache(cache_path(timings_folder, "timings", "cache", *self.gpus, self.library.version))
        made = compile_plan(self.library, self.content, self.gpus, self.profile, progress, timings)
        return made.plan, PlanEntry(
            file=self.file,
            graph=self.graph,
            phase=self.phase,
            key=self.key,
            sha256=hashlib.sha256(made.plan).hexdigest(),
            nbytes=made.plan.nbytes,
            flavour=self.library.flavour,
            library=self.library.version,
            gpus=list(self.gpus),
            profile=self.profile,
            bindings=plans.bindings(self.entry, made.bindings),
            plugins=made.plugins,
            onnx_sha256=self.onnx_sha256,
            scratch_bytes=made.scratch_bytes,
            seconds=round(time.monotonic() - began, 2),
        )
