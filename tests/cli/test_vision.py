"""Pictures from the command line, and what is said where they can't be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deltart.cli import main
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from support.seeing import Seeing
from support.vision import photograph

GREEDY = ["--temperature", "0", "--max-new-tokens", "12", "--threads", "1"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(photograph(40, 60, 8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def generated(capsys: pytest.CaptureFixture[str], artifact: Path, *flags: str) -> dict:
    assert main(["generate", str(artifact), "what?", *GREEDY, "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_pictures_of_generate(seeing: Seeing, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = generated(capsys, seeing.artifact, "--image", str(picture), "--image", str(picture))
    with Engine.open(seeing.artifact, threads=1, options=EngineOptions(slots=1)) as engine:
        content = [*[{"type": "image", "image": picture}] * 2, {"type": "text", "text": "what?"}]
        params = SamplingParams(temperature=0, max_new_tokens=12)
        expected = Chats(engine).reply([{"role": "user", "content": content}], params=params)
    assert found["tokens"] == expected.completion.tokens
    smaller = generated(capsys, seeing.artifact, "--image", str(picture), "--max-pixels", "1024")
    larger = generated(capsys, seeing.artifact, "--image", str(picture))
    assert smaller["usage"]["prompt_tokens"] < larger["usage"]["prompt_tokens"] < found["usage"]["prompt_tokens"]


def test_pictures_of_a_chat(seeing: Seeing, picture: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [f"/image {picture}", "/image none.png", "what?", "and?", f"/save {saved}", f"/load {saved}", "again?"]
    command = [sys.executable, "-m", "deltart", "chat", str(seeing.artifact), *GREEDY]
    run = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "none.png does not exist" in run.stderr
    messages = json.loads(saved.read_text())
    assert messages[0]["content"] == [{"type": "image", "image": str(picture)}, {"type": "text", "text": "what?"}]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert (tmp_path / "talk.json.prefix.safetensors").exists()


def test_what_is_refused(
    seeing: Seeing, nano_artifact: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for artifact, flags, words in (
        (nano_artifact, ["--image", str(picture)], "a part of type 'image'"),
        (seeing.artifact, ["--image", str(tmp_path / "none.png")], "none.png does not exist"),
        (seeing.artifact, ["--image", str(tmp_path / "text.png")], "picture that can't be read"),
    ):
        assert main(["generate", str(artifact), "what?", *GREEDY, *flags]) == 2
        assert words in capsys.readouterr().err
