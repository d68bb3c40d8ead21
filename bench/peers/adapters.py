"""An adapter for each engine: whether it can run here, what it makes of a checkpoint, and a greedy reply to ids."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.peers.checkpoint import CONTEXT

GGUF = "DELTART_BENCH_GGUF"  # the same checkpoint for llama.cpp, by its convert_hf_to_gguf.py --outtype f32
NO_GPU = "needs an NVIDIA GPU"


@dataclass(frozen=True)
class Reply:
    """A greedy reply: its tokens, and seconds to the first and to the last of them."""

    tokens: list[int]
    first_seconds: float
    seconds: float


Answer = Callable[[Sequence[int], int], Reply]  # to a prompt, of so many tokens


@dataclass(frozen=True)
class Peer:
    """An engine.

    Attributes:
        package: distribution that it comes in.
        form: what it runs of the checkpoint.
        missing: why it can't run here; empty where it can.
        export: what `open` takes of a checkpoint, written to a new folder where that is another.
        open: an engine over that, in a process of its own.
    """

    package: str
    form: str
    missing: Callable[[], str]
    export: Callable[[Path, Path], Path]
    open: Callable[[Path], Answer]

    def why_not(self) -> str:
        """Why it can't run here; empty where it can."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return self.missing()


def stepped(prefill: Callable[[Sequence[int]], int], step: Callable[[int], int]) -> Answer:
    """A reply by an engine that is fed a token at a time; both functions return the next one."""

    def answer(ids: Sequence[int], count: int) -> Reply:
        began = time.perf_counter()
        tokens = [prefill(ids)]
        first = time.perf_counter() - began
        while len(tokens) < count:
            tokens.append(step(tokens[-1]))
        return Reply(tokens, first, time.perf_counter() - began)

    return answer


def whole(generate: Callable[[Sequence[int], int], list[int]]) -> Answer:
    """A reply by an engine that gives it whole: the first token's time is that of a reply of one."""

    def answer(ids: Sequence[int], count: int) -> Reply:
        began = time.perf_counter()
        generate(ids, 1)
        first = time.perf_counter() - began
        began = time.perf_counter()
        tokens = generate(ids, count)
        return Reply(tokens, first, time.perf_counter() - began)

    return answer


def _deltart(folder: Path) -> Answer:
    from deltart.runtime.engine import Engine, EngineOptions
    from deltart.runtime.sampling.params import SamplingParams

    engine = Engine.open(folder, options=EngineOptions(slots=1, cache_bytes=0, draft_tokens=0))

    def answer(ids: Sequence[int], count: int) -> Reply:
        found = engine.generate(ids, SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True))
        return Reply(found.tokens, found.usage.first_token_seconds, found.usage.total_seconds)

    return answer


def _genai(folder: Path) -> Answer:
    import onnxruntime_genai as og  # type: ignore[import-not-found]

    model, generators = og.Model(str(folder)), list[Any]()

    def step(_: int) -> int:
        generators[-1].generate_next_token()
        return int(generators[-1].get_next_tokens()[0])

    def prefill(ids: Sequence[int]) -> int:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + 514, do_sample=False)
        generators[:] = [og.Generator(model, parameters)]
        generators[-1].append_tokens(list(ids))
        return step(0)

    return stepped(prefill, step)


def _transformers(folder: Path) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cache: list[Any] = [None]

    def forward(ids: Sequence[int]) -> int:
        found = model(torch.tensor([list(ids)]), past_key_values=cache[0], use_cache=True, logits_to_keep=1)
        cache[0] = found.past_key_values
        return int(found.logits[0, -1].argmax())

    def prefill(ids: Sequence[int]) -> int:
        cache[0] = None
        return forward(ids)

    return stepped(prefill, lambda token: forward([token]))


def _llama(gguf: Path) -> Answer:
    import numpy as np
    from llama_cpp import Llama, llama_get_logits_ith  # type: ignore[import-not-found]

    model = Llama(str(gguf), n_ctx=CONTEXT, n_batch=512, verbose=False)

    def feed(ids: Sequence[int]) -> int:
        model.eval(list(ids))
        last = llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(last, (model.n_vocab(),)).argmax())

    def prefill(ids: Sequence[int]) -> int:
        model.reset()
        return feed(ids)

    return stepped(prefill, lambda token: feed([token]))


def _vllm(folder: Path) -> Answer:
    from vllm import LLM, SamplingParams, TokensPrompt  # type: ignore[import-not-found]

    engine = LLM(str(folder), enable_prefix_caching=False, dtype="bfloat16")

    def generate(ids: Sequence[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        return list(engine.generate(TokensPrompt(prompt_token_ids=list(ids)), params)[0].outputs[0].token_ids)

    return whole(generate)


def _sglang(folder: Path) -> Answer:
    from sglang import Engine as Sglang  # type: ignore[import-not-found]

    engine = Sglang(model_path=str(folder), disable_radix_cache=True, dtype="bfloat16")

    def generate(ids: Sequence[int], count: int) -> list[int]:
        params = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
        return list(engine.generate(input_ids=list(ids), sampling_params=params)["output_ids"])

    return whole(generate)


def _exported(command: Callable[[Path, Path], list[str]]) -> Callable[[Path, Path], Path]:
    def export(checkpoint: Path, output: Path) -> Path:
        done = subprocess.run([sys.executable, "-m", *command(checkpoint, output)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(done.args)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return output

    return export


def _genai_builder(checkpoint: Path, output: Path) -> list[str]:
    options = ["-p", "fp32", "-e", "cpu", "-c", str(output / "cache"), "--extra_options", "exclude_mtp=true"]
    return ["onnxruntime_genai.models.builder", "-m", str(checkpoint), "-o", str(output), *options]


def _as_it_is(checkpoint: Path, output: Path) -> Path:
    return checkpoint


def _gpu() -> str:
    try:
        import torch

        return "" if torch.cuda.is_available() else NO_GPU
    except ImportError:
        return NO_GPU


def _no_gguf() -> str:
    found = os.environ.get(GGUF)
    return "" if found and Path(found).is_file() else f"needs the checkpoint as GGUF, named by {GGUF}"


PEERS: Mapping[str, Peer] = {
    "deltart": Peer(
        "deltart", "ONNX, f32", str,
        _exported(lambda c, o: ["deltart", "export", str(c), "-o", str(o), "--no-mtp"]), _deltart,
    ),
    "genai": Peer("onnxruntime-genai", "ONNX, f32, without MTP", str, _exported(_genai_builder), _genai),
    "transformers": Peer("transformers", "the checkpoint, in f32", str, _as_it_is, _transformers),
    "llama.cpp": Peer(
        "llama_cpp_python", "GGUF, f32", _no_gguf, lambda checkpoint, output: Path(os.environ[GGUF]), _llama
    ),
    "vllm": Peer("vllm", "the checkpoint, in bf16", _gpu, _as_it_is, _vllm),
    "sglang": Peer("sglang", "the checkpoint, in bf16", _gpu, _as_it_is, _sglang),
}  # fmt: skip
