"""The comparison behind `deltart verify`: it finds where a runner goes wrong, and says who did not run."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import Comparator, RunResults, SnrCompareFunc

from deltart.cli import main
from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.compare import Runner, VerifyReport, collect, judge
from deltart.verify.exposed import ExposedBackend
from deltart.verify.page import compared_points, page
from deltart.verify.runners import backend_points, logit_positions, read_prompts
from support.cases import VOCAB, Export

POINTS = ["embed.h", "layers.0.h", "layers.1.h", "hidden", "logits"]
TOLERANCES = {"reference": 1e-3, "good": 1e-3, "bad": 1e-3, "absent": 1e-3}
NANO = Path(__file__).resolve().parents[2] / "tools" / "nano"


def runner(noise: dict[str, float]) -> Runner:
    def points(ids: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        exact = {point: rng.standard_normal((len(ids), 8)).astype(np.float32) for point in POINTS}
        return {point: array * np.float32(1 + noise.get(point, 0.0)) for point, array in exact.items()}

    return Runner(points)


def absent() -> Runner:
    raise MissingDependencyError("no such <package>", "it", "install it")


def made(**noise: dict[str, float]) -> VerifyReport:
    makers = {"reference": lambda: runner({})} | {n: (lambda v=v: runner(v)) for n, v in noise.items()}
    return judge(Path("artifact"), collect(makers | {"absent": absent}, np.arange(5)), TOLERANCES)


def replying(replies: list[list[int]], logits: list[float] | None = None) -> Runner:
    """A runner of these replies to prompts [0], [1], ...; its logits are the same everywhere."""
    row = np.array([logits or [0.0] * 8], np.float32)
    return Runner(lambda ids: {"logits": row.repeat(len(ids), 0)}, lambda prompt: replies[prompt[0]])


def test_the_point_that_differs_is_found() -> None:
    report = made(good={"hidden": 1e-5}, bad={"layers.1.h": 0.5, "logits": -2.0})
    errors = {(d.point, d.runner): d.relative_rms for d in report.differences}
    assert errors["hidden", "good"] == pytest.approx(1e-5, rel=1e-2)
    assert errors["layers.1.h", "bad"] == pytest.approx(0.5, rel=1e-5)
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


def test_error_is_the_relative_rms() -> None:
    rng = np.random.default_rng(3)
    exact, other = (rng.standard_normal((50, 33)).astype(np.float32) for _ in range(2))
    makers = {"reference": lambda: Runner(lambda ids: {"logits": exact}),
              "good": lambda: Runner(lambda ids: {"logits": exact + np.float32(1e-4) * other})}  # fmt: skip
    (found,) = judge(Path("artifact"), collect(makers, np.arange(50)), TOLERANCES).differences
    added = (exact + np.float32(1e-4) * other).astype(np.float64) - exact
    assert found.relative_rms == pytest.approx(np.linalg.norm(added) / np.linalg.norm(exact.astype(np.float64)), 1e-4)
    assert found.max_abs == pytest.approx(np.abs(added).max(), 1e-4)


def test_what_the_reference_lacks_is_compared_with_the_next() -> None:
    def partial(points: list[str], noise: float) -> Runner:
        return Runner(lambda ids: {p: np.full((len(ids), 2), 1 + noise, np.float32) for p in points})

    makers = {
        "reference": lambda: partial(["embed.h", "layers.0.h", "logits"], 0.0),
        "good": lambda: partial([*POINTS, "mtp.logits"], 1e-4),
        "bad": lambda: partial([*POINTS[1:], "mtp.logits"], 2e-4),
    }
    report = judge(Path("artifact"), collect(makers, np.arange(5)), TOLERANCES)
    against = {(d.point, d.runner): (d.against, d.relative_rms) for d in report.differences}
    assert against["layers.0.h", "bad"] == ("reference", pytest.approx(2e-4, rel=1e-2))
    assert against["layers.1.h", "bad"] == ("good", pytest.approx(1e-4, rel=1e-2))
    assert ("layers.1.h", "good") not in against and against["mtp.logits", "bad"][0] == "good"
    assert compared_points(report) == [*POINTS[1:], "mtp.logits", "embed.h"]
    assert "layers.1.h (against good)" in page(report)


def test_another_shape_is_a_failure() -> None:
    makers = {"reference": lambda: runner({}), "bad": lambda: Runner(lambda ids: {"logits": np.zeros((5, 9))})}
    report = judge(Path("artifact"), collect(makers, np.arange(5)), TOLERANCES)
    assert [(d.relative_rms, d.passed) for d in report.differences] == [(np.inf, False)]


def test_replies_part_at_a_tie_or_fail() -> None:
    """The reference's logits of tokens 1 and 2 are equal but for 1e-4 of their RMS, those of 1 and 3 are not."""
    logits = [0.0, 1.0, 1.0001, 3.0, 0.0, 0.0, 0.0, 0.0]
    expected = [[5, 1, 4], [5, 1, 4], [6]]
    makers = {
        "reference": lambda: replying(expected, logits),
        "good": lambda: replying([[5, 2], [5, 1, 4], [6]], logits),
        "bad": lambda: replying([[5, 1, 4], [5, 3, 4], [6]], logits),
    }
    found = collect(makers, np.arange(3), [[0], [1], [2]])
    assert [(p.prompt, p.position) for p in found.divergences["good"]] == [(0, 1)]
    assert found.divergences["bad"][0].gap == pytest.approx(2 / np.sqrt(np.mean(np.square(logits))))
    report = judge(Path("artifact"), found, TOLERANCES)
    assert [(a.runner, a.equal, a.ties, a.passed) for a in report.replies] == [
        ("good", 2, 1, True),
        ("bad", 2, 0, False),
    ]
    assert not report.passed
    assert "2 of 3 replies equal, 1 part, 0 of them at a tie" in page(report)


def test_a_reply_that_ends_early_is_no_tie() -> None:
    makers = {"reference": lambda: replying([[5, 1]]), "bad": lambda: replying([[5]])}
    report = judge(Path("artifact"), collect(makers, np.arange(3), [[0]]), TOLERANCES)
    assert [p.gap for p in report.replies[0].divergences] == [np.inf] and not report.passed


def test_outputs_are_polygraphys(tmp_path: Path) -> None:
    makers = {"reference": lambda: runner({}), "bad": lambda: runner({"layers.1.h": 0.5})}
    collect(makers, np.arange(5)).save(tmp_path / "outputs.json")
    loaded = RunResults.load(str(tmp_path / "outputs.json"))
    assert list(loaded.keys()) == ["reference", "bad"]
    accuracy = Comparator.compare_accuracy(loaded, compare_func=SnrCompareFunc(snr_threshold=60))
    verdicts = accuracy[0]["reference", "bad"][0]
    assert {point: bool(verdict) for point, verdict in verdicts.items()} == {p: p != "layers.1.h" for p in POINTS}


def test_logits_are_of_the_same_tokens() -> None:
    assert logit_positions(10, 4).tolist() == list(range(10))
    chosen = logit_positions(100, 75)
    assert len(chosen) == 16 + 25 and chosen[15:].tolist() == list(range(74, 100)) and chosen[0] == 0


def test_prompts_of_a_file(tmp_path: Path) -> None:
    checkpoint, file = NANO / "checkpoint", tmp_path / "prompts.jsonl"
    first = json.loads((NANO / "heldout.jsonl").read_text().splitlines()[0])
    file.write_text(f'{json.dumps(first)}\n{{"prompt": "abc"}}\n{{"prompt": "never read"}}\n')
    chat, plain = read_prompts(file, checkpoint, 2)
    tokenizer = Tokenizer.from_folder(checkpoint)
    assert plain == tokenizer.encode("abc")
    text = ChatTemplate.from_folder(checkpoint).render(first["messages"], enable_thinking=first["enable_thinking"])
    assert chat == tokenizer.encode(text) and first["messages"][0]["content"] in text


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "empty prompt"), ('{"prompt": ""}', "empty prompt"), ("nonsense", "line 1"), ('{"text": "a"}', "line 1")],
)
def test_prompts_that_are_none(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(GenerationError, match=words):
        read_prompts(tmp_path / "prompts.jsonl", NANO / "checkpoint", 5)


def test_page_is_well_formed_and_complete() -> None:
    everywhere = dict.fromkeys(POINTS, 1e-5)
    text = page(made(good={"hidden": 1e-5}, bad=everywhere | {"layers.1.h": 0.5}))
    figures = [ElementTree.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in text.split("<svg")[1:]]
    assert len(figures) == 2
    for figure in figures:
        lines = figure.findall("polyline")
        heights = [[float(p.split(",")[1]) for p in line.get("points", "").split()] for line in lines]
        assert [len(h) for h in heights] == [1, 5]  # what is exact is not drawn
        assert heights[1].index(min(heights[1])) == 2  # the largest error is the highest point
        assert "1, bad: " in figure.findall("circle")[3].findtext("title", "")
    assert "no such &lt;package&gt;" in text and 'class="bad">5.00e-01' in text


def test_labels_of_many_layers_keep_apart() -> None:
    points = ["embed.h", *(f"layers.{n}.h" for n in range(64)), "hidden", "logits"]
    noisy = dict.fromkeys(points, 1e-5)

    def many(noise: dict[str, float]) -> Runner:
        return Runner(lambda ids: {p: np.full((1, 2), 1 + noise.get(p, 0), np.float32) for p in points})

    makers = {"reference": lambda: many({}), "good": lambda: many(noisy)}
    text = page(judge(Path("artifact"), collect(makers, np.arange(1)), TOLERANCES))
    figure = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    named = sorted(
        (float(t.get("x", "")), t.text or "") for t in figure.findall("text") if t.get("text-anchor") == "middle"
    )
    assert {"embed", "0", "63", "hidden", "logits"} <= {name for _, name in named} and len(named) < 25
    halves = [3.5 * len(name) for _, name in named]  # 7 pixels a character
    assert all(b[0] - a[0] > m + n for a, b, m, n in zip(named, named[1:], halves, halves[1:], strict=False))


@pytest.mark.parametrize("prefill", [1, 7, 12])
def test_exposed_graphs_agree_however_the_tokens_are_split(exported: Export, prefill: int) -> None:
    artifact = exported("heads-1-3").artifact
    ids = np.random.default_rng(0).integers(0, VOCAB, 12)
    backends = {target: ExposedBackend(artifact, target) for target in ("portable", "ort")}
    whole = backend_points(backends["portable"], backends["portable"].points, 12)(ids)
    mtp = ["mtp.hidden", "mtp.logits"]
    assert [*whole] == ["embed.h", *(f"layers.{n}.h" for n in range(4)), "hidden", "logits", *mtp]
    split = backend_points(backends["ort"], backends["ort"].points, prefill)(ids)
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


@pytest.mark.slow
def test_replies_of_nano(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `make engine` verifies: transformers and ONNX Runtime answer held-out prompts alike."""
    checkpoint = shutil.copytree(NANO / "checkpoint", tmp_path / "nano")
    artifact = str(tmp_path / "artifact")
    assert main(["export", str(checkpoint), "-o", artifact]) == 0
    capsys.readouterr()
    outputs = tmp_path / "outputs.json"
    question = ["--prompts", str(NANO / "heldout.jsonl"), "--count", "3", "--save-outputs", str(outputs)]
    assert main(["verify", artifact, *question, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["replies"] == [{"runner": "ort", "prompts": 3, "divergences": [], "tolerance": 1e-3}]
    assert list(RunResults.load(str(outputs)).keys()) == ["transformers", "portable", "ort"]


def test_a_corrupted_weight_fails_verification(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltart.runtime.backends.weights import MappedWeights

    stored = MappedWeights.__getitem__

    def scaled(self: MappedWeights, name: str) -> np.ndarray:
        array = stored(self, name)
        return array * array.dtype.type(1.5) if "layers.1.mlp.up_proj" in name else array

    monkeypatch.setattr(MappedWeights, "__getitem__", scaled)
    monkeypatch.setattr(MappedWeights, "in_artifact", False)  # ONNX Runtime reads none from the file itself
    assert (
        main(["verify", str(exported("heads-1-3").artifact), "--tokens", "9", "--html", str(tmp_path / "p.html")]) == 1
    )
    assert "FAILED" in capsys.readouterr().out
