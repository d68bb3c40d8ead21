"""Suites that nobody here wrote, against the server: schemathesis on its own OpenAPI document, lm-eval."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.clients
NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
TASK = """\
task: nano
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
QUESTIONS = '{"q": "Capital of France:", "c": [" Paris", " Rome"]}\n{"q": "2+2=", "c": ["4", "5"]}\n'


def command(installed: Path, name: str, program: str) -> Path:
    path = installed / name / "bin" / program
    if not path.exists():
        pytest.skip(f"{name} is not installed (tests/clients/install.sh {installed} {name})")
    return path


def run(arguments: list[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OPENAI_API_KEY": "x", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1200, env=environment, cwd=folder)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_schemathesis(
    short: str, installed: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No server error and no undocumented status in more than 2,000 cases."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    program = command(installed, "schemathesis", "schemathesis")
    flags = ["--phases", "coverage,fuzzing", "-n", "80", "--seed", "1", "--checks", checks, "--request-timeout", "60"]
    told = run([program, "run", f"{short}/openapi.json", *flags], tmp_path)
    generated, passed = map(int, re.findall(r"(\d+) generated, (\d+) passed", told)[0])
    record_property("cases", generated)
    assert generated == passed >= 2000


def test_lm_eval(address: str, nano_artifact: Path, installed: Path, tmp_path: Path) -> None:
    """Prompts as token ids, echoed with their logprobs, which are those of transformers."""
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    (tmp_path / "nano.yaml").write_text(TASK.format(data=tmp_path / "questions.jsonl"))
    where = (
        f"model=deltart-nano,base_url={address}/v1/completions,tokenizer={nano_artifact},tokenizer_backend=huggingface"
    )
    flags = ["--model", "local-completions", "--model_args", f"{where},num_concurrent=1,max_retries=1"]
    flags += ["--log_samples", "--output_path", str(tmp_path / "out")]
    told = run(
        [command(installed, "lm-eval", "lm_eval"), "run", *flags, "--tasks", "nano", "--include_path", tmp_path],
        tmp_path,
    )
    assert re.search(r"\|nano.*\|acc", told), told
    (samples,) = (tmp_path / "out").rglob("samples_nano_*.jsonl")
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    for sample in map(json.loads, samples.read_text().splitlines()):
        for asked, ((found, _),) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            expected = likelihood(model, tokenizer.encode(asked["arg_0"]), tokenizer.encode("".join(asked.values())))
            assert float(found) == pytest.approx(expected, abs=5e-3)


def likelihood(model: Any, prompt: list[int], whole: list[int]) -> float:
    """Log-probability of what follows the prompt, by transformers."""
    with torch.no_grad():
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
