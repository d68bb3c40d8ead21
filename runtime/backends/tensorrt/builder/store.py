"""Where plans lie: in an artifact, described by its engine.json, and in a cache that artifacts share.

engine.json is replaced last and in one step, and plans of another key have other names, so that a build that is killed
leaves the engine that was there. Two builds of one artifact take turns; two that share a cache take and give whole
plans only, each with its description.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from deltart.errors import ArtifactError, BuildError
from deltart.files import clear, link_or_copy, write_atomically
from deltart.locks import locked
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import EngineManifest, PlanEntry
from deltart.runtime.backends.tensorrt.builder.compile import Log, Progress


class Job(Protocol):
    """One plan to have."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """What it is built for; none where it serves any."""

    @property
    def name(self) -> str:
        """Graph and phase, as in "model.decode" of engine.json."""

    @property
    def file(self) -> str:
        """Name of the plan's file in an artifact: another key is another file."""

    @property
    def key(self) -> str:
        """Name of the plan in caches."""

    def build(self, timings_folder: Path, progress: Progress) -> tuple[memoryview, PlanEntry]:
        """The plan and what is known of it; `timings_folder` is where measurements of a build may be kept."""

    def warnings(self) -> list[str]:
        """What is to be said of the plan that was built last."""


class EngineStore:
    """The plans of one flavour of an artifact, `folder`, while this process alone changes them."""

    def __init__(self, folder: Path, cache: Path | None, before: dict[str, PlanEntry]) -> None:
        self.folder, self.cache = folder, cache
        self._there = before  # described plans by file name

    def obtain(self, job: Job, log: Log, progress: Progress) -> PlanEntry:
        """The plan of `job` in the folder: already there, linked from the cache, or built into both."""
        entry = self._there.get(job.file)
        if entry is not None and _is_plan(self.folder / job.file, entry):
            log(f"{job.name}: up to date ({entry.nbytes / 1e6:.1f} MB)")
            return entry
        entry = self._take(job)
        if entry is not None:
            log(f"{job.name}: taken from the cache ({entry.nbytes / 1e6:.1f} MB)")
            return entry
        log(f"{job.name}: building for {' '.join(job.gpus) or 'any GPU'}")
        plan, entry = job.build(self.cache or self.folder, progress)
        for warning in job.warnings():
            log(f"{job.name}: {warning}")
        entry = self._keep(job, plan, entry)
        sizes = f"{entry.nbytes / 1e6:.1f} MB, scratch {entry.scratch_bytes / 1e6:.1f} MB"
        log(f"{job.name}: {sizes}, in {entry.seconds:.0f} s")
        return entry

    def commit(self, engine: EngineManifest) -> None:
        """Make `engine` the artifact's, and remove the plans that it does not name."""
        engine.save(self.folder)
        named = {plan.file for plan in engine.plans.values()}
        for path in [path for path in self.folder.glob("*.plan") if path.name not in named]:
            for kept in (path, *self.folder.glob(f"{path.stem}.*.kernels")):
                kept.unlink(missing_ok=True)

    def _take(self, job: Job) -> PlanEntry | None:
        if self.cache is None:
            return None
        with locked(self.cache):
            return self._link(job)

    def _keep(self, job: Job, plan: memoryview, entry: PlanEntry) -> PlanEntry:
        """Store a new plan; the entry of what was stored, which is another process's where that one was first."""
        if self.cache is None:
            write_atomically(self.folder / job.file, plan)
            return entry
        with locked(self.cache):
            first = self._link(job)
            if first is not None:
                return first
            write_atomically(self.cache / f"{job.key}.plan", plan)
            described = json.dumps(asdict(entry), indent=1) + "\n"
            write_atomically(self.cache / f"{job.key}.json", described.encode())
            link_or_copy(self.cache / f"{job.key}.plan", self.folder / job.file)
            return entry

    def _link(self, job: Job) -> PlanEntry | None:
        """Bring the plan from the cache, if it is there and whole."""
        assert self.cache is not None
        source = self.cache / f"{job.key}.plan"
        with suppress(ArtifactError):
            entry = plans.read_plan_entry(source.with_suffix(".json"))
            if entry.key == job.key and entry.file == job.file and _is_plan(source, entry):
                link_or_copy(source, self.folder / job.file)
                return entry
        return None


@contextmanager
def engine_store(artifact: Path, flavour: str, cache: Path | None, log: Log) -> Iterator[EngineStore]:
    """The plans of `flavour` of an artifact, and the folder of plans that artifacts share (None: none).

    Raises:
        BuildError: they can't be written.
    """
    folder = plans.engine_folder(artifact, flavour)
    try:
        for place in (folder, *([cache] if cache else [])):
            place.mkdir(parents=True, exist_ok=True)
        with locked(folder, lambda: log("another build of this artifact is at work: waiting for it")):
            for place in (artifact, folder, *([cache] if cache else [])):
                clear(place)  # what killed builds left
            yield EngineStore(folder, cache, _described(artifact, flavour))
    except OSError as error:
        raise BuildError(f"plans can't be written ({error})", "a writable place with room", "see --cache") from error


def _described(artifact: Path, flavour: str) -> dict[str, PlanEntry]:
    """The artifact's plans by file name, none where it has no engine of this version."""
    with suppress(ArtifactError):
        return {plan.file: plan for plan in plans.load_engine(artifact, flavour).plans.values()}
    return {}


def _is_plan(path: Path, entry: PlanEntry) -> bool:
    """Whether the file is the plan that `entry` describes."""
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    return False
