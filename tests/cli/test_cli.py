"""The command line as a person uses it: synthesize, inspect, export, generate, doctor, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltart.cli import main
from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random FP8 checkpoint with nano's tokenizer, and its artifact, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    checkpoint = folder / "checkpoint"
    assert main(["synthesize", "tiny-fp8", "-o", str(checkpoint)]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(NANO / name, checkpoint / name)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 999, "do_sample": False}))
    assert main(["export", str(checkpoint), "-o", str(folder / "artifact"), "--max-context", "64"]) == 0
    return folder


def test_synthesize_names_every_preset_and_tells_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltart.cli import synthesize
    from deltart.export.synthetic import presets

    assert set(presets.PRESETS) == set(synthesize.PRESETS)
    assert main(["synthesize", "tiny-int4", "-o", str(tmp_path / "out"), "--sparse"]) == 0
    printed = capsys.readouterr()
    assert "writing model.safetensors (0.0 GB)" in printed.err and printed.out.endswith("tiny-int4, sparse\n")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(arguments) == 0
    result: dict = json.loads(capsys.readouterr().out)
    return result


def test_inspect(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "inspect", str(tiny / "checkpoint"), "--json")
    assert result["spec"]["hidden_size"] == 256 and len(result["tensors"]) == 181
    assert result["tensors"]["lm_head.weight"]["graphs"] == ["model", "mtp"]
    assert main(["inspect", str(tiny / "checkpoint"), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "6 Gated DeltaNet, 2 gated attention" in shown and "mtp.fc.weight" in shown


def test_generate_is_repeatable_and_bounded(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(tiny / "artifact"), "abc", "--max-new-tokens", "9", "--json"]
    greedy = run_json(capsys, *arguments)
    assert greedy == greedy | {"finish_reason": "length"} and len(greedy["tokens"]) == 9
    assert greedy["text"] == Tokenizer.from_folder(tiny / "artifact").decode(greedy["tokens"])
    assert greedy["usage"]["prompt_tokens"] == 3 and greedy["usage"]["decode_rate"] > 0
    portable = run_json(capsys, *arguments, "--target", "portable", "--weights", "mapped")
    assert portable["tokens"] == greedy["tokens"]
    sampled = [run_json(capsys, *arguments, "--temperature", "1", "--seed", seed)["tokens"] for seed in "112"]
    assert sampled[0] == sampled[1] != sampled[2]


def test_generate_stops_and_fills_the_context(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(tiny / "artifact")
    whole = run_json(capsys, "generate", artifact, "abc", "--json", "--max-new-tokens", "9")
    middle = whole["text"][3:6]
    cut = run_json(capsys, "generate", artifact, "abc", "--json", "--stop", middle)
    assert cut["finish_reason"] == "stop" and cut["text"] == whole["text"][: whole["text"].index(middle)]
    full = run_json(capsys, "generate", artifact, "abc", "--json", "--ignore-eos")
    assert len(full["tokens"]) == 61 and full["finish_reason"] == "length"  # 64 tokens of context


def test_stream_goes_to_stdout_and_rates_to_stderr(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny / "artifact"), "a", "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() and "4 new at" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "/nowhere"], "/nowhere does not exist"),
        (["generate", "/nowhere", "hello"], "nowhere does not exist"),
        (["generate", "{artifact}", ""], "the prompt is empty"),
        (["generate", "{artifact}", "7" * 64], "the prompt has 64 tokens"),
        (["generate", "{artifact}", "a", "--chat"], "chat template"),
        (["generate", "{artifact}", "a", "--system", "x"], "without --chat"),
        (["generate", "{artifact}", "a", "--temperature", "-1"], "temperature"),
        (["generate", "{artifact}", "a", "--chat", "--tools", "/nowhere.json"], "nowhere.json does not exist"),
        (["export", "{checkpoint}", "-o", "{artifact}"], "already in use"),
        (["synthesize", "huge", "-o", "{checkpoint}"], "no preset"),
    ],
)
def test_errors_exit_2_and_say_why(
    arguments: list[str], words: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"artifact": tiny / "artifact", "checkpoint": tiny / "checkpoint"}
    assert main([a.format(**places) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("deltart: error: ") or "deltart: error: " in captured.err
    assert words in captured.err.replace("chat_template", "chat template") and captured.out == ""


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = {f["name"]: f for f in json.loads((main(["doctor", "--json"]), capsys.readouterr().out)[1])}
    assert found["onnxruntime"]["present"] and found["torch"]["purpose"]
    assert all(f["present"] or f["remedy"] for f in found.values())
    assert all(len(f["remedy"]) <= 76 for f in found.values())  # copyable at 80 columns
    assert main(["doctor"]) == 0


def test_plugins_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plugins", "native", "--include", str(tmp_path), "--gpu", "sm_89"]) == 3
    assert "NvInfer.h is not in" in capsys.readouterr().err
    assert main(["plugins", "build", "--nvcc", str(tmp_path / "nvcc")]) == 3
    assert str(tmp_path / "nvcc") in capsys.readouterr().err
    assert main(["plugins", "build", "--artifact", str(tmp_path)]) == 2
    assert "has no plans" in capsys.readouterr().err


def test_nano_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in checkpoint: what `make engine` ends with."""
    checkpoint = shutil.copytree(NANO, tmp_path / "nano")
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "artifact")]) == 0
    question = ["generate", str(tmp_path / "artifact"), 'Type "abc" backwards', "--chat", "--temperature", "0"]
    capsys.readouterr()
    result = run_json(capsys, *question, "--json")
    assert result["finish_reason"] == "stop" and result["reply"]["content"] == "cba" and result["reply"]["reasoning"]
    direct = run_json(capsys, *question, "--json", "--no-thinking")
    assert direct["reply"]["reasoning"] == ""


def test_verify_shows_the_cost_of_fp8_activations(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["verify", str(tiny / "artifact"), "--tokens", "10", "--prefill", "9", "--json"]
    command += ["--html", str(tmp_path / "report.html")]
    capsys.readouterr()
    plain = run_json(capsys, *command)
    asked = run_json(capsys, *command, "--prefill-activations", "fp8")
    assert not any(d["runner"] == "fp8 prefill" for d in plain["differences"])
    costs = [d["relative_rms"] for d in asked["differences"] if d["runner"] == "fp8 prefill" and d["point"] == "logits"]
    assert len(costs) == 1 and 1e-4 < costs[0] < 0.3


def test_verify_writes_through_no_link(tiny: Path, tmp_path: Path) -> None:
    """An artifact from elsewhere may hold links in the places of the reports."""
    artifact, victim = tmp_path / "artifact", tmp_path / "victim"
    shutil.copytree(tiny / "artifact", artifact)
    victim.write_text("precious")
    for name in ("report.html", "report.json"):
        (artifact / name).symlink_to(victim)
    arguments = ["verify", str(artifact), "--tokens", "4", "--save-outputs", str(artifact / "outputs.json")]
    (artifact / "outputs.json").symlink_to(victim)
    assert main(arguments) == 0 and victim.read_text() == "precious"
    names = ("report.html", "report.json", "outputs.json")
    assert not any((artifact / name).is_symlink() for name in names) and not list(artifact.glob(".*"))
    assert main(arguments) == 0, "what verify wrote it may replace"


@pytest.mark.parametrize("mine", ["notes.html", "notes.json", "outputs.json"])
def test_verify_replaces_nothing_of_ones_own(
    tiny: Path, tmp_path: Path, mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--html notes.html` writes notes.json too."""
    (tmp_path / mine).write_text('{"precious": true}')
    arguments = ["--html", str(tmp_path / "notes.html"), "--save-outputs", str(tmp_path / "outputs.json")]
    assert main(["verify", str(tiny / "artifact"), "--tokens", "4", *arguments]) == 2
    assert f"{mine} exists" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [mine] and "precious" in (tmp_path / mine).read_text()


def test_a_chat_reply_is_shown_in_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(NANO), "-o", str(tmp_path / "artifact")]) == 0
    question = ["generate", str(tmp_path / "artifact"), 'Type "abc" backwards', "--chat", "--temperature", "0"]
    capsys.readouterr()
    reply = run_json(capsys, *question, "--json")["reply"]
    assert main(question) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{reply['content']}\n", "a pipe gets the answer alone"
    assert shown.err.startswith(f"{reply['reasoning']}\n")
    assert "think>" not in shown.out + shown.err


@pytest.mark.parametrize("tools", ["[3]", "[{}]", '[{"name": 3}]', '{"name": "f"}', '"f"', "[[]]", "nope"])
def test_tools_that_are_none_are_refused(
    tiny: Path, tmp_path: Path, tools: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tools.json").write_text(tools)
    command = ["generate", str(tiny / "artifact"), "a", "--chat", "--tools", str(tmp_path / "tools.json")]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "tool" in captured.err and captured.out == ""
