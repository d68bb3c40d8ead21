"""An engine that rounds prompts' activations to E4M3 may be off as far as its twin is, and not by a wrong scale."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from deltart.calib.pipeline import calibrate
from deltart.cli import main
from deltart.export.pipeline import export_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.fp8_linear.activations import AS_STORED, ROUNDED, WHERE_MULTIPLIED, rounds
from deltart.plugins.launch import Launch
from deltart.runtime.backends.gpu.cuda import Run
from deltart.runtime.backends.tensorrt.builder.build import LONG_CHUNK, BuildOptions, build_engine
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.tolerances import FP8_PREFILL, NATIVE_ON_SHIM, TWIN_SHARE
from support.native_engine import NANO, heldout_ids


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano in block FP8 with native plans, built as they are where nothing is asked for but a short context."""
    folder = tmp_path_factory.mktemp("rounding")
    calibrate(NANO, folder / "checkpoint", method="absmax")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    lower_artifact(folder / "artifact", "native")
    build_engine(folder / "artifact", BuildOptions("native", max_context=64, chunk=32))
    return folder / "artifact"


def verified(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    prompt = ["--prompt", "Once upon a time there was", "--tokens", "24"]
    capsys.readouterr()
    main(["verify", str(artifact), *prompt, "--json", "--html", f"{tmp_path}/page.html", *more])
    return json.loads(capsys.readouterr().out)


def test_no_right_engine_is_refused(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100 tokens, as many as are run by default: here the engine's logits are off by 3.5 times what the twin's are."""
    text = Tokenizer.from_folder(NANO).decode(heldout_ids(100).tolist())
    build_engine(artifact, BuildOptions("native", max_context=128, chunk=96))
    report = verified(artifact, tmp_path, capsys, "--prompt", text)
    assert report["passed"] and report["tokens"] == 100
    build_engine(artifact, BuildOptions("native", max_context=64, chunk=32))


def errors(report: dict, runner: str) -> dict[str, float]:
    return {d["point"]: d["relative_rms"] for d in report["differences"] if d["runner"] == runner}


def test_the_engine_is_off_as_far_as_its_twin(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = verified(artifact, tmp_path, capsys)
    assert report["passed"] and report["twins"] == {NATIVE_ON_SHIM: FP8_PREFILL}
    mine, twins = errors(report, NATIVE_ON_SHIM), errors(report, FP8_PREFILL)
    exact = report["tolerances"][NATIVE_ON_SHIM]
    assert exact == 0.02 and 3e-3 < twins["layers.0.h"] < 0.1
    for point in ("layers.0.h", "layers.3.h", "hidden", "logits"):
        assert 0.7 * twins[point] < mine[point] < TWIN_SHARE * twins[point] + exact, point
    asked = verified(artifact, tmp_path, capsys, "--prefill-activations", "bf16")
    assert asked["twins"] == {} and asked["tolerances"][NATIVE_ON_SHIM] == 0.3 and FP8_PREFILL not in asked["greedy"]


class Faulty(HostCuda):
    """Doubles the scale of each token's first 128 values, where they are rounded."""

    def kernels(self, source: Path) -> Run:
        run = super().kernels(source)

        def launched(launches: list[Launch]) -> None:
            for launch in launches:
                run([launch])
                if launch.kernel == "fp8_block_linear_quantize":  # scales [blocks of K, tokens]
                    scales, tokens = launch.args[2].value, launch.args[3].value
                    np.ctypeslib.as_array((ctypes.c_float * int(tokens or 0)).from_address(int(scales or 0)))[:] *= 2

        return launched


def test_a_wrong_scale_is_beyond_it(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltart.plugins.cpu_shim.host_cuda.HostCuda", Faulty)
    report = verified(artifact, tmp_path, capsys)
    assert not report["passed"]
    bad = {d["point"] for d in report["differences"] if not d["passed"]}
    assert "layers.0.h" in bad and {d["runner"] for d in report["differences"] if not d["passed"]} == {NATIVE_ON_SHIM}


@pytest.mark.parametrize(
    "mode, rounding",
    [(AS_STORED, []), (ROUNDED, [80, 86, 87, 89, 90, 100, 120]), (WHERE_MULTIPLIED, [89, 90, 100, 120])],
)
def test_which_gpus_round(mode: int, rounding: list[int]) -> None:
    assert [gpu for gpu in (80, 86, 87, 89, 90, 100, 120) if rounds(mode, gpu)] == rounding


def test_prompts_are_rounded_and_pieces_long_where_nothing_is_asked_for(artifact: Path, tmp_path: Path) -> None:
    engine = build_engine(artifact, BuildOptions("native", cache=tmp_path / "cache"))
    assert (engine.prefill_activations, engine.chunk) == ("auto", LONG_CHUNK)
    build_engine(artifact, BuildOptions("native", max_context=64, chunk=32))
