"""The routed experts of a sparse MLP, by how the checkpoint stores them: fused, or one by one in block FP8 or int4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deltart.dtypes import BY_STORED, I32, I64
from deltart.errors import CheckpointError
from deltart.export import ops
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import CHANNEL, CONVERT_BLOCK, CompressedSpec, Int4Scheme, Scheme
from deltart.export.formats.fp8_compressed import stored_fp8
from deltart.export.formats.int4_group import stored_group_size
from deltart.export.regions import GROUPS, KINDS, PACKED, PACKED_KINDS, PACKED_SCALE, PACKED_SHAPE, PARTS
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
    """Experts that lie one after the other in a file: `numbers` in the order of the slots. forward: as FusedExperts.

    `quantize_activations` makes it W8A8, as Fp8Linear's does.
    """

    quantize_activations = False

    kinds = KINDS

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
            x,
            logits,
            n_tokens,
            self.weight,
            self.weight_scale_inv,
            self.slot_expert,
            *self.sizes,
            int(self.quantize_activations),
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


class Int4ExpertRun(nn.Module):
    """The same of experts packed in groups of `group_size` values of a row."""

    kinds = PACKED_KINDS

    def __init__(self, numbers: Sequence[int], moe: MoeSpec, hidden: int, group_size: int) -> None:
        super().__init__()
        width = moe.moe_intermediate_size
        self.numbers, self.sizes = numbers, (moe.num_experts_per_tok, hidden, width, group_size)
        shape = (len(numbers), len(PARTS))
        packed = torch.empty(*shape, hidden * width // 2, dtype=torch.uint8)
        self.weight_groups = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(*shape, hidden * width // group_size), requires_grad=False)
        slot_expert = torch.tensor(numbers, dtype=torch.int32, device="cpu")
        self.register_buffer("slot_expert", slot_expert, persistent=False)

    def forward(self, x: Tensor, logits: Tensor, n_tokens: Tensor) -> Tensor:
        y: Tensor = ops.int4_moe_experts(
            x, logits, n_tokens, self.weight_groups, self.weight_scale, self.slot_expert, *self.sizes
        )
        return y

    def members(self, kind: str) -> Iterator[tuple[str, Shape]]:
        """As ExpertRun.members; of the bytes, the tensors of words behind them."""
        _, hidden, width, group_size = self.sizes
        leaf, per = (PACKED, 8) if kind == GROUPS else (PACKED_SCALE, group_size)
        for number in self.numbers:
            for part in PARTS:
                rows, columns = (hidden, width) if part == "down_proj" else (width, hidden)
                yield f"{number}.{part}.{leaf}", (rows, columns // per)


Run = ExpertRun | Int4ExpertRun


class Experts(nn.Module):
    """Experts stored one by one, bound in the runs in which the checkpoint holds them. forward: as FusedExperts."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self.runs = nn.ModuleList(runs)

    def forward(self, x: Tensor, logits: Tensor, n_tokens: Tensor) -> Tensor:
        y: Tensor = self.runs[0](x, logits, n_tokens)
        for run in self.runs[1:]:
            y = y + run(x, logits, n_tokens)
        return y


def compressed_scheme(
    checkpoint: Checkpoint, experts: str, moe: MoeSpec, hidden: int, spec: CompressedSpec
) -> Scheme | None:
    """How compressed-tensors stores the experts of the module `experts` one by one; None where they are fused.

    Raises:
        CheckpointError: they can't be bound as they are stored, or config.json says something else of them.
    """
    first = f"{experts}.0.{PARTS[0]}"
    group_size = stored_group_size(checkpoint, first, (hidden, moe.moe_intermediate_size), spec)
    if group_size is not None:
        return Int4Scheme(group_size)
    scheme = stored_fp8(checkpoint, first, spec)
    expected = "int4, FP8 by blocks of 128 x 128, or all in two fused tensors"
    if scheme is not None and scheme.strategy == CHANNEL:
        raise CheckpointError(f"the experts of '{experts}' are {scheme}", expected, CONVERT_BLOCK)
    if scheme is None and f"{first}.weight" in checkpoint:
        found = f"the experts of '{experts}' are stored one by one in {checkpoint[f'{first}.weight'].dtype}"
        raise CheckpointError(found, expected, "save them as transformers does: fused into gate_up_proj and down_proj")
    return scheme


def as_written(count: int) -> tuple[int, ...]:
    """The order in which a safetensors writer puts `count` experts."""
    return tuple(sorted(range(count), key=str))


def stored_runs(
    checkpoint: Checkpoint, experts: str, count: int, make: Callable[[tuple[int, ...]], Run], leaves: tuple[str, str]
) -> list[Run]:
    """The runs of the module `experts` as modules, which `make` makes of the experts in the order of their slots.
    `leaves` is what weights and scales are called.

    Raises:
        CheckpointError: an expert is missing, in pieces, misshapen or not in the config, or there are too many runs.
    """
    runs: list[tuple[int, ...]] = []
    kind = GROUPS if leaves[0] == PACKED else KINDS[0]
    while region := checkpoint.regions.get(f"{experts}.runs.{len(runs)}.{kind}"):
        runs.append(region.experts)
    every = list(range(count))
    found = sorted(number for run in runs for number in run)
    if found != every:
        odd = min(set(found) ^ set(every))
        raise CheckpointError(*_why_not(checkpoint, f"{experts}.{odd}", odd in found, count, leaves))
    if len(runs) > MAX_RUNS:
        where = " ".join(str(run[0]) for run in runs)
        raise CheckpointError(
            f"the experts of '{experts}' lie in {len(runs)} pieces, beginning with experts {where}",
            f"at most {MAX_RUNS}",
            "write the layer into one file with safetensors",
        )
    modules = [make(run) for run in runs]
    for number, module in enumerate(modules):
        _check_shapes(checkpoint, f"{experts}.runs.{number}", module)
        if isinstance(module, Int4ExpertRun):
            _check_stated(checkpoint, experts, module)
    return modules


def _why_not(
    checkpoint: Checkpoint, expert: str, found: bool, count: int, leaves: tuple[str, str]
) -> tuple[str, str, str]:
    if found:
        return f"the checkpoint holds '{expert}'", f"experts 0 to {count - 1}", "correct num_experts in config.json"
    names = [f"{expert}.{part}.{kind}" for kind in leaves for part in PARTS]
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


def _check_shapes(checkpoint: Checkpoint, place: str, run: Run) -> None:
    for kind in run.kinds:
        region = checkpoint.regions[f"{place}.{kind}"]
        for name, (_, shape) in zip(region.members, run.members(kind), strict=True):
            found = checkpoint[name].shape
            if found != shape:
                raise CheckpointError(
                    f"tensor '{name}' has shape {list(found)}",
                    f"{list(shape)}, as config.json implies",
                    "config.json and weights are of different models",
                )


def _check_stated(checkpoint: Checkpoint, experts: str, run: Int4ExpertRun) -> None:
    """That the shapes stated beside packed weights are theirs: tens of thousands of pairs of numbers."""
    files: dict[str, np.ndarray] = {}
    for name, (rows, words) in run.members(GROUPS):
        stated = f"{experts}.{name.removesuffix(PACKED)}{PACKED_SHAPE}"
        info = checkpoint.get(stated)
        if info is None or info.shape != (2,) or info.dtype not in (I64.stored, I32.stored):
            found = f"tensor '{stated}' is {f'{info.dtype} {list(info.shape)}' if info else 'missing'}"
            raise CheckpointError(found, "two integers", "the checkpoint is incomplete")
        if info.file not in files:
            files[info.file] = np.memmap(checkpoint.folder / info.file, np.uint8, "r")
        found = files[info.file][info.offset : info.offset + info.nbytes].view(BY_STORED[info.dtype].numpy).tolist()
        if found != [rows, words * 8]:
            raise CheckpointError(f"'{stated}' says {found}", f"{[rows, words * 8]}, as config.json implies")
