"""Unmodified clients hold a conversation each; their scripts assert what they get."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
pytestmark = pytest.mark.clients


def environment(address: str, **more: str) -> dict[str, str]:
    names = {"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": "x", "SERVER": address}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **names, **quiet, **more}


def run(command: list[str | Path], seconds: float = 300, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout)


def client(installed: Path, name: str) -> Path:
    folder = installed / name
    if not (folder / ".ready").exists():
        pytest.skip(f"{name} is not installed (tests/clients/install.sh {installed} {name})")
    return folder


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("openai", "openai_chat.py"),
        ("openai", "openai_structured.py"),
        ("anthropic", "anthropic_messages.py"),
        ("anthropic", "anthropic_tools.py"),
        ("instructor", "instructor_models.py"),
        ("langchain", "langchain_agent.py"),
        ("litellm", "litellm_proxy.py"),
        ("pydantic-ai", "pydantic_ai_agent.py"),
        ("smolagents", "smolagents_agent.py"),
        ("qwen-agent", "qwen_agent_assistant.py"),
    ],
)
def test_python(name: str, script: str, installed: Path, address: str, tmp_path: Path) -> None:
    python = client(installed, name) / "bin" / "python"
    run([python, SCRIPTS / script], env=environment(address), cwd=tmp_path)


@pytest.mark.parametrize("structured", ["", "1"])
@pytest.mark.parametrize(("name", "script"), [("openai-js", "openai_js.mjs"), ("ai", "ai.mjs")])
def test_node(name: str, script: str, structured: str, installed: Path, address: str) -> None:
    folder = client(installed, name)
    shutil.copy(SCRIPTS / script, folder / script)  # modules are looked up beside the script
    run(["node", folder / script], env=environment(address, STRUCTURED=structured))


def test_qwen_code(installed: Path, address: str, tmp_path: Path) -> None:
    """The agent's headless mode: a prompt of 52,000 of this tokenizer's tokens."""
    modules = client(installed, "qwen-code") / "node_modules"
    command = [
        modules / ".bin" / "node",
        modules / ".bin" / "qwen",
        "--auth-type",
        "openai",
        "-p",
        "List the files here.",
    ]
    flags = ["--yolo", "-o", "json", "--max-session-turns", "2"]
    home = environment(address, OPENAI_MODEL="deltart-nano", HOME=str(tmp_path), QWEN_TELEMETRY_ENABLED="false")
    run([*command, *flags], 600, env=home, cwd=tmp_path)


def test_codex(installed: Path, address: str, tmp_path: Path) -> None:
    """It speaks /v1/responses only."""
    (tmp_path / "config.toml").write_text(
        'model = "deltart-nano"\nmodel_provider = "deltart"\n[model_providers.deltart]\nname = "deltart"\n'
        f'base_url = "{address}/v1"\nenv_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
    )
    codex = client(installed, "codex") / "node_modules" / ".bin" / "codex"
    home = environment(address, CODEX_HOME=str(tmp_path), HOME=str(tmp_path))
    run(
        [codex, "exec", "--skip-git-repo-check", "--sandbox", "read-only", 'Type "planet" backwards'],
        600,
        env=home,
        cwd=tmp_path,
    )
