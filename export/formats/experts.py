"""The routed experts of a sparse MLP, by how the checkpoint stores them: fused, or one by one in block FP8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deltart.errors import CheckpointError
from deltart.export import ops
from deltart.export.checkpoint import Checkpoint
from deltart.export.regions import KINDS, PARTS
from deltart.export.spec import MoeSpec
from deltart.plugins.fp8_linear.reference import BLOCK

MAX_RUNS = 8  # pieces of one layer: each is a node of the graph

Shape = tuple[int, ...]


class FusedExperts(nn.Module):
    """All experts in two tensors of plain floating point, the gate's rows before the up projection's.

    forward: x [B, T, H], logits [B, T, E] (f32), n_tokens [B] -> [B, T, H]; 0 for tokens beyond n_tokens.
    """

    def __init__(self, moe: MoeSpec, hidden: int) -> None:
        super().__init__()
        count, width = moe.num_experts, moe.moe_intermediate_size
        self.count = count
        self.sizes = (moe.num_experts_per_tok, hidden, width)
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width), requires_grad=False)

    def forward(self, x: Tensor, logits: Tensor, n_tokens: Tensor) -> Tensor:
        y: Tensor = ops.moe_experts(x, logits, n_tokens, self.gate_up_proj, self.down_proj, *self.sizes)
        return y


class ExpertRun(nn.Module):
    """Experts that lie one after the other in a file: `numbers` in the order of the slots. forward: as FusedExperts."""

    def __init__(self, numbers: Sequence[int], moe: MoeSpec, hidden: int) -> None:
        super().__init__()
        width = moe.moe_intermediate_size
        self.numbers, self.sizes = numbers, (moe.num_experts_per_tok, hidden, width)
        blocks = -(-hidden // BLOCK) * -(-width // BLOCK)
        shape = (len(numbers), len(PARTS))
        weight = torch.empty(*shape, hidden * width, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(torch.empty(*shape, blocks), requires_grad=False)
        slot_expert = torch.tensor(numbers, dtype=torch.int32, device="cpu")
        self.register_buffer("slot_expert", slot_expert, persistent=False)

    def forward(self, x: Tensor, logits: Tensor, n_tokens: Tensor) -> Tensor:
        y: Tensor = ops.fp8_moe_experts(
            x, logits, n_tokens, self.weight, self.weight_scale_inv, self.slot_expert, *self.sizes
        )
        return y

    def members(self, kind: str) -> Iterator[tuple[str, Shape]]:
        """Names and shapes of the tensors behind parameter `kind`, from the expert's number on, as they lie."""
        _, hidden, width = self.sizes
        shapes = {"down_proj": (hidden, width), "gate_proj": (width, hidden), "up_proj": (width, hidden)}
        for number in self.numbers:
            for part in PARTS:
                shape = shapes[part] if kind == "weight" else tuple(-(-size // BLOCK) for size in shapes[part])
                yield f"{number}.{part}.{kind}", shape


class Fp8Experts(nn.Module):
    """Experts stored one by one, bound in the runs in which the checkpoint holds them. forward: as FusedExperts."""

    def __init__(self, runs: Sequence[Sequence[int]], moe: MoeSpec, hidden: int) -> None:
        super().__init__()
        self.runs = nn.ModuleList(ExpertRun(numbers, moe, hidden) for numbers in runs)

    def forward(self, x: Tensor, logits: Tensor, n_tokens: Tensor) -> Tensor:
        y: Tensor = self.runs[0](x, logits, n_tokens)
        for run in self.runs[1:]:
            y = y + run(x, logits, n_tokens)
        return y


def as_written(count: int) -> tuple[int, ...]:
    """The order in which a safetensors writer puts `count` experts."""
    return tuple(sorted(range(count), key=str))


def stored_runs(
    checkpoint: Checkpoint, experts: str, moe: MoeSpec, hidden: int, scale: str = KINDS[1]
) -> list[tuple[int, ...]]:
    """The runs of the module `experts`: which experts, in the order of their slots. `scale` is what scales are called.

    Raises:
        CheckpointError: an expert is missing, in pieces, misshapen or not in the config, or there are too many runs.
    """
    runs: list[tuple[int, ...]] = []
    while region := checkpoint.regions.get(f"{experts}.runs.{len(runs)}.weight"):
        runs.append(region.experts)
    every = list(range(moe.num_experts))
    found = sorted(number for run in runs for number in run)
    if found != every:
        odd = min(set(found) ^ set(every))
        kinds = (KINDS[0], scale)
        raise CheckpointError(*_why_not(checkpoint, f"{experts}.{odd}", odd in found, moe.num_experts, kinds))
    if len(runs) > MAX_RUNS:
        where = " ".join(str(run[0]) for run in runs)
        raise CheckpointError(
            f"the experts of '{experts}' lie in {len(runs)} pieces, beginning with experts {where}",
            f"at most {MAX_RUNS}",
            "write the layer into one file with safetensors",
        )
    for number, run in enumerate(runs):
        _check_shapes(checkpoint, f"{experts}.runs.{number}", ExpertRun(run, moe, hidden))
    return runs


def _why_not(
    checkpoint: Checkpoint, expert: str, found: bool, count: int, kinds: tuple[str, str]
) -> tuple[str, str, str]:
    if found:
        return f"the checkpoint holds '{expert}'", f"experts 0 to {count - 1}", "correct num_experts in config.json"
    names = [f"{expert}.{part}.{kind}" for kind in kinds for part in PARTS]
    missing = [name for name in names if name not in checkpoint]
    if missing:
        return (
            f"tensor '{missing[0]}' is missing",
            f"every weight and scale of {count} experts",
            "the checkpoint is incomplete, or stores its experts in another way",
        )
    places = ", ".join(f"{n.removeprefix(expert)[1:]} in {checkpoint[n].file} at {checkpoint[n].offset}" for n in names)
    return (
        f"'{expert}' is not in one piece: {places}",
        "its weights one after the other as down, gate, up, of one dtype and size, and its scales likewise",
        "write the layer into one file with safetensors",
    )


def _check_shapes(checkpoint: Checkpoint, place: str, run: ExpertRun) -> None:
    for kind in KINDS:
        region = checkpoint.regions[f"{place}.{kind}"]
        for name, (_, shape) in zip(region.members, run.members(kind), strict=True):
            found = checkpoint[name].shape
            if found != shape:
                raise CheckpointError(
                    f"tensor '{name}' has shape {list(found)}",
                    f"{list(shape)}, as config.json implies",
                    "config.json and weights are of different models",
                )
