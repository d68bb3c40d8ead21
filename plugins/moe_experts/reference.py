"""Float64 reference of routed experts: an expert at a time, over the tokens that chose it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deltart.plugins.fp8_linear.reference import BLOCK, dequantize, quantize, scaled
from deltart.plugins.residual_rms_norm.reference import residual_rms_norm

Expert = tuple[np.ndarray, np.ndarray, np.ndarray]  # gate [I, H], up [I, H], down [H, I]
Read = Callable[[np.ndarray], np.ndarray]


def exact(rows: np.ndarray) -> np.ndarray:
    """What a product reads of its activations [N, K]: all."""
    return rows


def rounded(rows: np.ndarray) -> np.ndarray:
    """The same, rounded to E4M3 with a scale per row and 128 of K."""
    return scaled(*quantize(rows.astype(np.float32)))


def route(logits: np.ndarray, num_experts_per_tok: int) -> tuple[np.ndarray, np.ndarray]:
    """logits [N, E] -> experts [N, k] by falling logit, of equal ones the lower first, and their weights [N, k].

    The softmax over the chosen logits: what the softmax over all of them is once its top k are renormalised.
    """
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :num_experts_per_tok]
    best = np.take_along_axis(logits, chosen, 1)
    weights = np.exp(best - best[:, :1])
    return chosen, weights / weights.sum(1, keepdims=True)


def moe_experts(
    x: np.ndarray,
    logits: np.ndarray,
    n_tokens: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    num_experts_per_tok: int,
    hidden_size: int,
    intermediate_size: int,
) -> tuple[np.ndarray]:
    """x [B, T, H], logits [B, T, E], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [B, T, H].

    Tokens at or beyond n_tokens[b] go to no expert: their y is 0.
    """

    def expert(number: int) -> Expert:
        gate, up = np.split(gate_up[number].astype(np.float64), 2)
        return gate, up, down[number].astype(np.float64)

    return _mix(x, logits, n_tokens, num_experts_per_tok, dict.fromkeys(range(len(down))), expert)


def fp8_moe_experts(
    x: np.ndarray,
    logits: np.ndarray,
    n_tokens: np.ndarray,
    experts: np.ndarray,
    experts_scale: np.ndarray,
    slot_expert: np.ndarray,
    num_experts_per_tok: int,
    hidden_size: int,
    intermediate_size: int,
    quantize_activations: int = 0,
) -> tuple[np.ndarray]:
    """As `moe_experts`, of the experts that lie in the region: slot s holds expert slot_expert[s].

    experts [S, 3, H*I] (E4M3 values): down [H, I], gate [I, H] and up [I, H] of each slot; experts_scale
    [S, 3, blocks]: their scales, one per 128 x 128 block. An expert in no slot adds nothing. `quantize_activations`: 1
    rounds what each product reads to E4M3 first, in f32 arithmetic.
    """
    hidden, width = hidden_size, intermediate_size
    rows, columns = -(-hidden // BLOCK), -(-width // BLOCK)

    def expert(slot: int) -> Expert:
        down, gate, up = experts[slot].astype(np.float64)
        down_scale, gate_scale, up_scale = experts_scale[slot]
        return (
            dequantize(gate.reshape(width, hidden), gate_scale.reshape(columns, rows)),
            dequantize(up.reshape(width, hidden), up_scale.reshape(columns, rows)),
            dequantize(down.reshape(hidden, width), down_scale.reshape(rows, columns)),
        )

    slots = {int(number): slot for slot, number in enumerate(slot_expert)}
    read = rounded if quantize_activations else exact
    return _mix(x, logits, n_tokens, num_experts_per_tok, slots, lambda number: expert(slots[number]), read)


def _mix(
    x: np.ndarray,
    logits: np.ndarray,
    n_tokens: np.ndarray,
    count: int,
    present: dict[int, int] | dict[int, None],
    expert: Callable[[int], Expert],
    read: Read = exact,
) -> tuple[np.ndarray]:
    real = _real(x, n_tokens)
    rows, (chosen, weights) = x[real], route(logits[real], count)
    mixed = np.zeros_like(rows)
    for number in sorted(present.keys() & set(chosen.ravel().tolist())):
        token, rank = np.nonzero(chosen == number)
        mixed[token] += weights[token, rank, None] * swiglu(rows[token], *expert(number), read)
    y = np.zeros_like(x)
    y[real] = mixed
    return (y,)


def _real(x: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Which tokens are there, [B, T]."""
    there: np.ndarray = np.arange(x.shape[1]) < n_tokens[:, None]
    return there


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray, read: Read = exact) -> np.ndarray:
    """down(silu(gate x) * (up x)) of x [N, H]; `read` is what products read of their activations."""
    taken = read(x)
    opened = taken @ gate.T
    result: np.ndarray = read(opened / (1.0 + np.exp(-opened)) * (taken @ up.T)) @ down.T
    return result


def sparse_moe(
    x: np.ndarray,
    logits: np.ndarray,
    n_tokens: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    shared_gate: np.ndarray,
    shared_up: np.ndarray,
    shared_down: np.ndarray,
    shared_expert_gate: np.ndarray,
    num_experts_per_tok: int,
    hidden_size: int,
    intermediate_size: int,
) -> tuple[np.ndarray]:
    """`moe_experts`, and the expert that every token takes through its own sigmoid gate [1, H]."""
    (routed,) = moe_experts(x, logits, n_tokens, gate_up, down, num_experts_per_tok, hidden_size, intermediate_size)
    return (routed + _shared(x, n_tokens, (shared_gate, shared_up, shared_down), shared_expert_gate),)


def fp8_sparse_moe(
    x: np.ndarray,
    logits: np.ndarray,
    n_tokens: np.ndarray,
    experts: np.ndarray,
    experts_scale: np.ndarray,
    slot_expert: np.ndarray,
    shared_gate: np.ndarray,
    shared_gate_scale_inv: np.ndarray,
    shared_up: np.ndarray,
    shared_up_scale_inv: np.ndarray,
    shared_down: np.ndarray,
    shared_down_scale_inv: np.ndarray,
    shared_expert_gate: np.ndarray,
    num_experts_per_tok: int,
    hidden_size: int,
    intermediate_size: int,
    quantize_activations: int = 0,
) -> tuple[np.ndarray]:
    """`fp8_moe_experts`, and the expert that every token takes through its own sigmoid gate [1, H]."""
    (routed,) = fp8_moe_experts(
        x, logits, n_tokens, experts, experts_scale, slot_expert, num_experts_per_tok, hidden_size, intermediate_size,
        quantize_activations,
    )  # fmt: skip
    pairs = (
        (shared_gate, shared_gate_scale_inv),
        (shared_up, shared_up_scale_inv),
        (shared_down, shared_down_scale_inv),
    )
    gate, up, down = (dequantize(*pair) for pair in pairs)
    read = rounded if quantize_activations else exact
    return (routed + _shared(x, n_tokens, (gate, up, down), shared_expert_gate, read),)


def with_norm(experts: Callable[..., tuple[np.ndarray, ...]]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """One of the references above, then residual_rms_norm of its result over residual [B, T, H]: of the inputs, then
    residual, norm_weight [H] and `arrived`, which is 0, and by name the three sizes and epsilon."""

    def reference(*given: np.ndarray, epsilon: float, **sizes: int) -> tuple[np.ndarray, np.ndarray]:
        *inputs, residual, norm_weight, _ = given
        (y,) = experts(*inputs, **sizes)
        return residual_rms_norm(y, residual, norm_weight, epsilon)

    return reference


def _shared(x: np.ndarray, n_tokens: np.ndarray, expert: Expert, gate: np.ndarray, read: Read = exact) -> np.ndarray:
    y, real = np.zeros_like(x), _real(x, n_tokens)
    y[real] = swiglu(x[real], *expert, read) / (1.0 + np.exp(-x[real] @ gate.T))
    return y
