"""What others published of this family on single GPUs, and what this engine took, as calls that the planner predicts.

Engines that run other weights (four bits, three bits) are left out: their bytes are not those of an artifact here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deltart.planner.devices import DEVICES
from deltart.planner.predict import Factors, predict, prefill, tokens_per_step
from deltart.planner.traffic import Call, Model

DENSE, SPARSE, SPARSE_BF16 = "qwen3.6-27b-fp8", "qwen3.6-35b-a3b-fp8", "qwen3.6-35b-a3b"
ACCEPTED = 2.9  # tokens of a step with three drafts, as published for the 27B and taken for the other
ACCEPTANCE = 0.7884  # of a draft: tokens_per_step(3, 0.7884) is that
VLLM, SGLANG = "vLLM", "SGLang 0.5.16"


@dataclass(frozen=True)
class Anchor:
    """One published figure.

    Attributes:
        kind: "gap" (ms between tokens of a sequence), "rate" (tokens/s of a whole run: prompts and replies),
            "ttft" (ms to the first token through a server) or "prompt" (prompt tokens/s of the engine).
        published: in the unit of its kind.
        prompt: tokens of the prompt.
        reply: tokens of a reply, where the whole run counts.
    """

    model: str
    device: str
    engine: str
    kind: Literal["gap", "rate", "ttft", "prompt"]
    published: float
    prompt: int
    rows: int = 1
    drafts: int = 0
    reply: int = 0

    @property
    def decode(self) -> bool:
        """Whether it is of decoding rather than of reading a prompt."""
        return self.kind in ("gap", "rate")

    def predicted(self, models: Mapping[str, Model], factors: Factors) -> float:
        """The prediction, in the same unit."""
        model, device = models[self.model], DEVICES[self.device]
        if self.kind == "prompt":
            return self.prompt / prefill(model, device, self.prompt, factors).seconds
        if self.kind == "ttft":
            return 1e3 * (prefill(model, device, self.prompt, factors).seconds + factors.request_seconds)
        call = Call(self.rows, 1 + self.drafts, self.prompt + self.reply // 2, self.drafts, 1 + self.drafts)
        gap = predict(model, device, call, factors).seconds / tokens_per_step(self.drafts, ACCEPTANCE)
        if self.kind == "gap":
            return 1e3 * gap
        read = prefill(model, device, self.rows * self.prompt, factors).seconds + factors.request_seconds
        return self.rows * self.reply / (read + self.reply * gap)

    def error(self, models: Mapping[str, Model], factors: Factors) -> float:
        """Relative error of the predicted time; above 0 where it is predicted too slow."""
        ratio = self.predicted(models, factors) / self.published
        return ratio - 1 if self.kind in ("gap", "ttft") else 1 / ratio - 1


ANCHORS = (
    Anchor(DENSE, "h100", "vLLM 0.21", "gap", 1e3 / 77, 128),
    Anchor(DENSE, "h100", SGLANG, "gap", 5.27, 8192, drafts=3),
    Anchor(DENSE, "h200", SGLANG, "gap", 4.3, 8192, drafts=3),
    Anchor(DENSE, "b200", SGLANG, "gap", 3.4, 8192, drafts=3),
    Anchor(SPARSE, "h100", SGLANG, "gap", 2.21, 8192, drafts=3),
    Anchor(SPARSE, "h200", SGLANG, "gap", 1.98, 8192, drafts=3),
    Anchor(SPARSE, "b200", SGLANG, "gap", 1.81, 8192, drafts=3),
    Anchor(SPARSE, "b300", SGLANG, "gap", 1.71, 8192, drafts=3),
    Anchor(SPARSE_BF16, "h100", SGLANG, "gap", 2.48, 8192, drafts=3),
    Anchor(SPARSE_BF16, "h200", SGLANG, "gap", 2.23, 8192, drafts=3),
    Anchor(SPARSE, "h100", SGLANG, "gap", 7.17, 8192, rows=16, drafts=3),
    Anchor(SPARSE, "h200", SGLANG, "gap", 6.2, 8192, rows=16, drafts=3),
    Anchor(SPARSE, "b200", SGLANG, "gap", 4.62, 8192, rows=16, drafts=3),
    Anchor(SPARSE, "dgx-spark", "not stated", "gap", 1e3 / 58.6, 128, drafts=2),
    Anchor(SPARSE, "h100", "vLLM 0.19", "rate", 1243, 128, rows=16, reply=128),
    Anchor(SPARSE_BF16, "h100", "vLLM 0.19", "rate", 718, 128, rows=16, reply=128),
    Anchor(DENSE, "h100", SGLANG, "ttft", 522, 8192),
    Anchor(DENSE, "h200", SGLANG, "ttft", 487, 8192),
    Anchor(DENSE, "b200", SGLANG, "ttft", 292, 8192),
    Anchor(SPARSE, "h100", SGLANG, "ttft", 147, 8192),
    Anchor(SPARSE, "h200", SGLANG, "ttft", 138, 8192),
    Anchor(SPARSE, "b200", SGLANG, "ttft", 116, 8192),
    Anchor(SPARSE, "b300", SGLANG, "ttft", 101, 8192),
    Anchor(SPARSE_BF16, "h100", SGLANG, "ttft", 202, 8192),
    Anchor(SPARSE_BF16, "h200", SGLANG, "ttft", 182, 8192),
    Anchor(DENSE, "h100", "best published", "prompt", 11400, 512),
)

OWN = "DeltaRT, 27 Nov 2026"
# What this engine took on one H100 (bench/results), kernels of that day; no part of the fit.
MEASURED = (
    Anchor(DENSE, "h100", OWN, "gap", 12.72, 0),
    Anchor(DENSE, "h100", OWN, "gap", 13.52, 32768),
    Anchor(DENSE, "h100", OWN, "gap", 15.75, 131072),
    Anchor(SPARSE, "h100", OWN, "gap", 3.117, 0),
    Anchor(SPARSE, "h100", OWN, "gap", 3.746, 32768),
    Anchor(DENSE, "h100", OWN, "prompt", 12703, 2048),
    Anchor(DENSE, "h100", OWN, "prompt", 11456, 8192),
    Anchor(SPARSE, "h100", OWN, "prompt", 20143, 2048),
    Anchor(SPARSE, "h100", OWN, "prompt", 19574, 8192),
)
