"""Native engines of the trained nano: as it is, in FP8 and in packed int4."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from support.native_engine import NANO

Nano = Callable[[str], Path]
SLOTS, CONTEXT, CHUNK = 3, 256, 32


@pytest.fixture(scope="session")
def native_nano(nano_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """Artifacts with native plans of the nano, "bf16", "fp8" or "int4", made once; copy one before writing to it."""
    from deltart.calib.formats import FP8, Int4Groups
    from deltart.calib.pipeline import calibrate
    from deltart.export.pipeline import export_checkpoint
    from deltart.export.targets import lower_artifact
    from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
    from deltart.verify.tensorrt_exposed import build_exposed

    made: dict[str, Path] = {}

    def make(stored: str) -> Path:
        if stored not in made:
            folder = tmp_path_factory.mktemp(stored)
            if stored != "bf16":
                form = FP8 if stored == "fp8" else Int4Groups(32)
                calibrate(NANO, folder / "checkpoint", method="absmax", form=form)
                export_checkpoint(folder / "checkpoint", folder / "artifact")
            else:
                shutil.copytree(nano_artifact, folder / "artifact")
            made[stored] = folder / "artifact"
            lower_artifact(made[stored], "native")
            build_engine(made[stored], BuildOptions("native", None, SLOTS, CONTEXT, CHUNK, "bf16"))
            build_exposed(made[stored], "native", None)
        return made[stored]

    return make


@pytest.fixture
def engine(native_nano: Nano) -> Callable[[str], TensorRtBackend]:
    """Opens an engine on a GPU made of host memory, every kernel on the CPU shim."""
    return lambda stored: TensorRtBackend(native_nano(stored), "native", cuda=HostCuda())
