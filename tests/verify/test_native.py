"""`deltart verify` has the native engine on the CPU shim, on a machine without a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltart.cli import main
from deltart.export.targets import lower_artifact
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.verify import artifact_runners
from deltart.verify.tolerances import FP8_HEAD, NATIVE_ON_SHIM, allowed, tolerance_of, tolerances


def verified(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    main(
        [
            "verify",
            str(artifact),
            "--tokens",
            "12",
            "--prompt",
            "Once upon",
            "--json",
            "--html",
            f"{tmp_path}/page.html",
        ]
    )
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def artifact(nano_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano_artifact, tmp_path / "artifact", symlinks=True))


def test_a_column_beside_portable_and_ort(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verified(artifact, tmp_path, capsys)
    assert "no plans of flavour 'native'" in report["skipped"][NATIVE_ON_SHIM] and report["passed"]
    lower_artifact(artifact, "native")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 16))
    report = verified(artifact, tmp_path, capsys)
    mine = {d["point"]: d for d in report["differences"] if d["runner"] == NATIVE_ON_SHIM}
    assert [*mine] == ["embed.h", *(f"layers.{n}.h" for n in range(4)), "hidden", "logits", "mtp.hidden", "mtp.logits"]
    assert report["passed"] and NATIVE_ON_SHIM not in report["skipped"]
    assert 0 < mine["logits"]["relative_rms"] <= report["tolerances"][NATIVE_ON_SHIM]
    monkeypatch.setattr(artifact_runners, "SHIM_BYTES", 1 << 20)
    assert "MB of weights on the CPU shim" in verified(artifact, tmp_path, capsys)["skipped"][NATIVE_ON_SHIM]


def test_the_mtp_head_stands_on_the_text_model() -> None:
    assert allowed(0.02, "mtp.hidden") == 0.04 and allowed(0.02, "hidden") == 0.02


@pytest.mark.slow
def test_an_fp8_head_has_a_bound_of_its_own(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lower_artifact(artifact, "native")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 16, lm_head="fp8"))
    report = verified(artifact, tmp_path, capsys)
    errors = {d["point"]: d["relative_rms"] for d in report["differences"] if d["runner"] == NATIVE_ON_SHIM}
    assert report["passed"] and report["tolerances"][f"{NATIVE_ON_SHIM}: logits"] == FP8_HEAD
    assert 5e-3 < errors["logits"] <= FP8_HEAD and errors["hidden"] <= report["tolerances"][NATIVE_ON_SHIM]


def test_a_tolerance_of_logits_is_theirs_alone() -> None:
    given = tolerances("bf16", fp8_heads=["engine"])
    assert [tolerance_of(given, "engine", point) for point in ("hidden", "logits", "mtp.logits")] == [0.02, 0.1, 0.1]
    assert tolerance_of(given, "engine by block", "logits") == 0.02
