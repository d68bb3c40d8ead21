"""One native plan to have: what it is made of, its name in caches, and its making."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from deltart.manifest import GraphEntry
from deltart.plugins.code_hash import plugin_code
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import Flavour, PlanEntry, Profile
from deltart.runtime.backends.native.builder.compile import compile_plan
from deltart.runtime.backends.native.plan import FORMAT
from deltart.version import __version__

FLAVOUR: Flavour = "native"


@dataclass(frozen=True)
class NativeJob:
    """See tensorrt.builder.store.Job. A native plan serves every GPU that its kernels are compiled for."""

    graph: str
    entry: GraphEntry
    phase: str
    profile: Profile
    content: bytes
    gpus: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """See Job."""
        return f"{self.graph}.{self.phase}"

    @property
    def file(self) -> str:
        """See Job."""
        return f"{self.name}.{self.key}.plan"

    @property
    def key(self) -> str:
        """See Job."""
        return plans.plan_key(self._sha256, FLAVOUR, str(FORMAT), self.gpus, self.profile, plugin_code())

    def build(self, timings_folder: Path, progress: object) -> tuple[memoryview, PlanEntry]:
        """See Job. Raises as `compile_plan` does."""
        began = time.monotonic()
        made = compile_plan(self.content, self.profile)
        content = made.plan.content()
        return memoryview(content), PlanEntry(
            file=self.file,
            graph=self.graph,
            phase=self.phase,
            key=self.key,
            sha256=hashlib.sha256(content).hexdigest(),
            nbytes=len(content),
            flavour=FLAVOUR,
            library=__version__,
            gpus=[],
            profile=self.profile,
            bindings=plans.bindings(self.entry, made.bindings),
            plugins=made.ops,
            onnx_sha256=self._sha256,
            scratch_bytes=made.plan.arena_bytes,
            seconds=round(time.monotonic() - began, 2),
        )

    def warnings(self) -> list[str]:
        """See Job: none."""
        return []

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()
