"""An adapter for each engine: whether it can run here, what it makes of a checkpoint, and greedy replies to ids.

Every engine on the CPU may use all cores, whatever its own default is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.peers.llama import open_llama

GGUF = "DELTART_BENCH_GGUF"  # the same checkpoint for llama.cpp, by its convert_hf_to_gguf.py --outtype f32
NO_GPU = "needs an NVIDIA GPU"
LONGEST_REPLY = 514  # tokens

Prompts = Sequence[Sequence[int]]  # a row each, all of one length
Tokens = list[int]


@dataclass(frozen=True)
class Replies:
    """Greedy replies, side by side.

    Attributes:
        tokens: of each row.
        first_seconds: until every row had its first token.
        decode_seconds: a stretch of time in which all rows decoded, and nothing else was done.
        decoded: tokens of all rows that it gave.
    """

    tokens: list[Tokens]
    first_seconds: float
    decode_seconds: float
    decoded: int


Answer = Callable[[Prompts, int], Replies]  # to prompts, of so many tokens each


@dataclass(frozen=True)
class Peer:
    """An engine.

    Attributes:
        package: distribution that it comes in.
        form: what it runs of the checkpoint.
        missing: why it can't run here; empty where it can.
        export: what `open` takes of a checkpoint, written to a new folder where that is another.
        open: an engine over that for so many rows of so many tokens, in a process of its own.
    """

    package: str
    form: str
    missing: Callable[[], str]
    export: Callable[[Path, Path], Path]
    open: Callable[[Path, int, int], Answer]

    def why_not(self) -> str:
        """Why it can't run here; empty where it can."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return self.missing()


def stepped(prefill: Callable[[Prompts], Tokens], step: Callable[[Tokens], Tokens]) -> Answer:
    """Replies by an engine that is fed a token of each row at a time; both functions return the next ones."""

    def answer(prompts: Prompts, count: int) -> Replies:
        began = time.perf_counter()
        drawn = [prefill(prompts)]
        first = time.perf_counter()
        while len(drawn) < count:
            drawn.append(step(drawn[-1]))
        decoding = time.perf_counter() - first
        return Replies(_by_row(drawn), first - began, decoding, (count - 1) * len(prompts))

    return answer


def whole(generate: Callable[[Prompts, int], list[Tokens]]) -> Answer:
    """Replies by an engine that gives them whole: the first tokens' time is that of replies of one."""

    def answer(prompts: Prompts, count: int) -> Replies:
        began = time.perf_counter()
        generate(prompts, 1)
        first = time.perf_counter() - began
        began = time.perf_counter()
        tokens = generate(prompts, count)
        return Replies(tokens, first, time.perf_counter() - began - first, (count - 1) * len(prompts))

    return answer


def _by_row(drawn: Sequence[Tokens]) -> list[Tokens]:
    return [list(row) for row in zip(*drawn, strict=True)]


def _deltart(folder: Path, rows: int, context: int) -> Answer:
    from deltart.runtime.engine import Engine, EngineOptions
    from deltart.runtime.sampling.params import SamplingParams

    options = EngineOptions(slots=rows, max_model_len=context, cache_bytes=0, draft_tokens=0)
    engine = Engine.open(folder, options=options)

    def parameters(count: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True)

    def one(prompts: Prompts, count: int) -> Replies:
        found = engine.generate(prompts[0], parameters(count))
        first = found.usage.first_token_seconds
        return Replies([found.tokens], first, found.usage.total_seconds - first, len(found.tokens) - 1)

    def several(prompts: Prompts, count: int) -> Replies:
        """Rows start one after the other: what counts is the time from the last one's first token to the first one's
        end.

        Raises:
            SystemExit: there is no such time.
        """
        began = time.perf_counter()
        handles = [engine.submit(engine.request(ids, parameters(count))) for ids in prompts]
        ahead = [(token, time.perf_counter() - began) for delta in handles[0] for token in delta.tokens]
        tokens = [[token for token, _ in ahead], *(handle.result()[0].tokens for handle in handles[1:])]
        first = max(handle.usage.first_token_seconds for handle in handles)
        together = [at for _, at in ahead if at >= first]
        if len(together) < 2:
            raise SystemExit(f"{rows} rows never ran at once: replies of {count} tokens are too short")
        return Replies(tokens, first, together[-1] - together[0], (len(together) - 1) * rows)

    return one if rows == 1 else several


def _genai(folder: Path, rows: int, context: int) -> Answer:
    import numpy as np
    import onnxruntime_genai as og  # type: ignore[import-not-found]

    config = og.Config(str(folder))
    session = {"session_options": {"intra_op_num_threads": os.cpu_count()}}  # its own default is half of them
    config.overlay(json.dumps({"model": {"decoder": session}}))
    model, generators = og.Model(config), list[Any]()

    def step(_: Tokens) -> Tokens:
        generators[-1].generate_next_token()
        return [int(token) for token in generators[-1].get_next_tokens()]

    def prefill(prompts: Prompts) -> Tokens:
        parameters = og.GeneratorParams(model)
        longest = min(len(prompts[0]) + LONGEST_REPLY, context)
        parameters.set_search_options(max_length=longest, do_sample=False, batch_size=rows)
        generators[:] = [og.Generator(model, parameters)]
        generators[-1].append_tokens(np.array(prompts, np.int32))
        return step([])

    return stepped(prefill, step)


def _transformers(folder: Path, rows: int, context: int) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cache: list[Any] = [None]

    def forward(ids: Prompts) -> Tokens:
        found = model(torch.tensor(ids), past_key_values=cache[0], use_cache=True, logits_to_keep=1)
        cache[0] = found.past_key_values
        tokens: Tokens = found.logits[:, -1].argmax(-1).tolist()
        return tokens

    def prefill(prompts: Prompts) -> Tokens:
        cache[0] = None
        return forward(prompts)

    return stepped(prefill, lambda tokens: forward([[token] for token in tokens]))


def _llama(gguf: Path, rows: int, context: int) -> Answer:
    return stepped(*open_llama(gguf, rows, context))


def _vllm(folder: Path, rows: int, context: int) -> Answer:
    from vllm import LLM, SamplingParams, TokensPrompt  # type: ignore[import-not-found]

    engine = LLM(str(folder), enable_prefix_caching=False, dtype="bfloat16", max_model_len=context, max_num_seqs=rows)

    def generate(prompts: Prompts, count: int) -> list[Tokens]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        given = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        return [list(found.outputs[0].token_ids) for found in engine.generate(given, params)]

    return whole(generate)


def _sglang(folder: Path, rows: int, context: int) -> Answer:
    from sglang import Engine as Sglang  # type: ignore[import-not-found]

    engine = Sglang(
        model_path=str(folder), disable_radix_cache=True, dtype="bfloat16", context_length=context,
        max_running_requests=rows,
    )  # fmt: skip

    def generate(prompts: Prompts, count: int) -> list[Tokens]:
        params = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
        found = engine.generate(input_ids=[list(ids) for ids in prompts], sampling_params=params)
        return [list(one["output_ids"]) for one in found]

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
        "deltart", "ONNX, f32, text model without MTP", str,
        _exported(lambda c, o: ["deltart", "export", str(c), "-o", str(o), "--no-mtp", "--text-only"]), _deltart,
    ),
    "genai": Peer("onnxruntime-genai", "ONNX, f32, text model without MTP", str, _exported(_genai_builder), _genai),
    "transformers": Peer("transformers", "the checkpoint, in f32", str, _as_it_is, _transformers),
    "llama.cpp": Peer(
        "llama_cpp_python", "GGUF, f32", _no_gguf, lambda checkpoint, output: Path(os.environ[GGUF]), _llama
    ),
    "vllm": Peer("vllm", "the checkpoint, in bf16", _gpu, _as_it_is, _vllm),
    "sglang": Peer("sglang", "the checkpoint, in bf16", _gpu, _as_it_is, _sglang),
}  # fmt: skip
