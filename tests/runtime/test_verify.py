"""The comparison behind `deltart verify`: it finds where a runner goes wrong, and says who did not run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from deltart.cli import main
from deltart.errors import MissingDependencyError
from deltart.runtime.backends.exposed import ExposedBackend
from deltart.runtime.verify import Report, Runner, backend_runner, compare
from deltart.runtime.verify_page import page
from support.cases import VOCAB, Export

POINTS = ["embed.h", "layers.0.h", "layers.1.h", "hidden", "logits"]
TOLERANCES = {"reference": 1e-3, "good": 1e-3, "bad": 1e-3, "absent": 1e-3}


def runner(noise: dict[str, float]) -> Runner:
    def run(ids: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        exact = {point: rng.standard_normal((len(ids), 8)) for point in POINTS}
        return {point: array * (1 + noise.get(point, 0.0)) for point, array in exact.items()}

    return run


def absent() -> Runner:
    raise MissingDependencyError("no such <package>", "it", "install it")


def made(**noise: dict[str, float]) -> Report:
    makers = {"reference": lambda: runner({})} | {n: (lambda v=v: runner(v)) for n, v in noise.items()}
    return compare(Path("artifact"), makers | {"absent": absent}, TOLERANCES, np.arange(5))


def test_the_point_that_differs_is_found() -> None:
    report = made(good={"hidden": 1e-5}, bad={"layers.1.h": 0.5, "logits": -2.0})
    errors = {(d.point, d.runner): d.relative_rms for d in report.differences}
    assert errors["hidden", "good"] == pytest.approx(1e-5)
    assert errors["layers.1.h", "bad"] == pytest.approx(0.5)
    assert errors["layers.0.h", "bad"] == 0
    assert report.greedy == {"good": 1.0, "bad": 0.0}
    assert not report.passed and made(good={}).passed
    assert report.skipped.keys() == {"absent"}


def test_nothing_compared_is_no_pass() -> None:
    assert not made().passed


def test_not_a_number_is_a_failure() -> None:
    report = made(bad={"logits": np.nan})
    assert not report.passed
    assert {d.relative_rms for d in report.differences if d.point == "logits"} == {np.inf}


def test_page_is_well_formed_and_complete() -> None:
    text = page(made(good={"hidden": 1e-5}, bad={"layers.1.h": 0.5}))
    start, end = text.index("<svg"), text.index("</svg>") + 6
    svg = ElementTree.fromstring(text[start:end])
    lines = svg.findall("polyline")
    assert len(lines) == 2
    heights = [[float(p.split(",")[1]) for p in line.get("points", "").split()] for line in lines]
    assert [len(h) for h in heights] == [5, 5]
    assert heights[1].index(min(heights[1])) == 2  # the largest error is the highest point
    assert "no such &lt;package&gt;" in text and 'class="bad">5.00e-01' in text


@pytest.mark.parametrize("prefill", [1, 7, 12])
def test_exposed_graphs_agree_however_the_tokens_are_split(exported: Export, prefill: int) -> None:
    artifact = exported("heads-1-3").artifact
    ids = np.random.default_rng(0).integers(0, VOCAB, 12)
    backends = {target: ExposedBackend(artifact, target) for target in ("portable", "ort")}
    whole = backend_runner(backends["portable"], backends["portable"].points, 12)(ids)
    assert [p for p in whole] == ["embed.h", *(f"layers.{n}.h" for n in range(4)), "hidden", "logits"]
    split = backend_runner(backends["ort"], backends["ort"].points, prefill)(ids)
    for point, array in whole.items():
        assert np.abs(split[point] - array).max() <= 1e-4, point


@pytest.mark.parametrize("case", ["fp8", "tied"])
def test_verify_command(exported: Export, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = exported(case).artifact
    target = tmp_path / "page.html"
    assert main(["verify", str(artifact), "--tokens", "20", "--html", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "layers.2" in printed and "against transformers" in printed
    assert target.exists() and target.with_suffix(".json").exists()


def test_a_corrupted_weight_fails_verification(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltart.runtime.weights import MappedWeights

    stored = MappedWeights.__getitem__

    def scaled(self: MappedWeights, name: str) -> np.ndarray:
        array = stored(self, name)
        return array * array.dtype.type(1.5) if "layers.1.mlp.up_proj" in name else array

    monkeypatch.setattr(MappedWeights, "__getitem__", scaled)
    assert (
        main(["verify", str(exported("heads-1-3").artifact), "--tokens", "9", "--html", str(tmp_path / "p.html")]) == 1
    )
    assert "FAILED" in capsys.readouterr().out
