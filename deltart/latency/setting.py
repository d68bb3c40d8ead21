"""What a measurement was taken of, and how: only what was taken in the same setting is compared."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltart.artifact import load_manifest
from deltart.errors import BenchError
from deltart.json_files import read_json
from deltart.latency.cases import Case
from deltart.latency.child import Child
from deltart.latency.turns import Open
from deltart.manifest import DIGEST, FILE_NAME
from deltart.planner.host import host_name

SLOTS = 8


@dataclass(frozen=True)
class Setting:
    """The machine and the options of a measurement; `cases` has what exactly was asked for, by metric."""

    device: str
    cores: int
    system: str
    threads: int
    target: str
    weights: str
    context: int
    slots: int
    cases: Mapping[str, Any]

    def differences(self, other: Setting) -> list[str]:
        """What keeps numbers of the two from being compared, each by name with both values."""
        mine, others = asdict(self), asdict(other)
        return [f"{name}: {others[name]} then, {mine[name]} now" for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact, and the Python whose deltart runs it (None: this one)."""

    artifact: str
    python: str | None = None
    digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def same_artifact(self) -> bool:
        """Whether the artifact is still where it was, and the same."""
        return (Path(self.artifact) / FILE_NAME).is_file() and artifact_digest(Path(self.artifact)) == self.digest


def artifact_digest(artifact: Path) -> str:
    """The manifest's own hash, which covers graphs and weights. Raises ArtifactError for no artifact."""
    load_manifest(artifact)
    return str(read_json(artifact / FILE_NAME)[DIGEST])


def current(threads: int, target: str, weights: str, context: int, cases: Sequence[Case]) -> Setting:
    """The setting of a measurement on this machine. The device is the GPU where the target runs there, else the CPU."""
    return Setting(
        device=_device(target),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor}",
        threads=threads,
        target=target,
        weights=weights,
        context=context,
        slots=SLOTS,
        cases={case.name: {"do": case.do, "repeats": case.repeats, **case.arguments} for case in cases},
    )


def opener(subject: Subject, setting: Setting, **options: Any) -> Open:
    """Starts a worker on the subject; `options` override fields of EngineOptions."""
    chosen = {"slots": setting.slots, "max_model_len": setting.context, "draft_tokens": 0} | options

    def start() -> Child:
        child = Child(subject.python)
        child.tell(
            "open", artifact=subject.artifact, threads=setting.threads, target=setting.target,
            weights=setting.weights, **chosen,
        )  # fmt: skip
        return child

    return start


def identify(artifact: Path, python: str | None = None) -> Subject:
    """The subject, with its hash and the versions that its Python has.

    Raises:
        BenchError: that Python has no deltart that runs.
    """
    with Child(python) as child:
        versions = child.ask("versions")
    if "deltart" not in versions:
        raise BenchError(f"{python} has no deltart", "a Python with deltart installed", "pip install deltart there")
    return Subject(str(artifact.resolve()), python, artifact_digest(artifact), versions)


def _device(target: str) -> str:
    if target in ("auto", "tensorrt"):
        try:
            from deltart.runtime.backends.gpu.cuda import device_name

            found = device_name()
        except Exception:  # no driver, no bindings: the CPU runs it
            found = ""
        if found:
            return found
    return host_name()
