"""What a call of the model moves and computes, by kind of block: bytes from the manifest, arithmetic from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from deltart.manifest import Manifest, StateEntry
from deltart.runtime.memory_plan import TOWER_BYTES
from deltart.runtime.vision.encoder import CALL_PATCHES

EMBEDDING = "embed_tokens.weight"
ATTENTION, DELTA_NET, MLP, EXPERTS, HEAD, DRAFTS, OTHER = (
    "attention", "DeltaNet", "MLP", "experts", "head", "drafts", "other"
)  # fmt: skip
CACHE, RECURRENT = "K/V cache", "recurrent state"
# What a tensor's name holds, in the order in which it is looked for.
_KINDS = (
    (".mlp.experts.", EXPERTS), (".mlp.", MLP), (".linear_attn.", DELTA_NET), (".self_attn.", ATTENTION),
    ("lm_head.", HEAD), (EMBEDDING, HEAD),
)  # fmt: skip
_SCALES = ("_scale_inv", ".weight_scale")
_PACKED = (".weight_groups", ".weight_scale")  # int4, two values a byte, as every engine holds them
TOWER_PLAN_BYTES = 24  # that the tower's plan works in, a patch and unit of width: 438 MB at 16384 patches of 1152


@dataclass(frozen=True)
class Work:
    """Bytes and FLOPs of one kind of block in one call. `wide` FLOPs are of BF16 whatever the weights' type is."""

    nbytes: float = 0.0
    flops: float = 0.0
    wide: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.nbytes + other.nbytes, self.flops + other.flops, self.wide + other.wide)


@dataclass(frozen=True)
class Call:
    """One call: `rows` sequences of `tokens` tokens each behind `past` tokens, and `drafts` runs of the MTP head."""

    rows: int = 1
    tokens: int = 1
    past: int = 0
    drafts: int = 0
    logits: int = 1  # tokens of a row whose logits are wanted


@dataclass(frozen=True, eq=False)
class Model:
    """An artifact's sizes.

    Attributes:
        weights: (bytes, elements) by kind, of the text graph; the head's are the embedding's where they are tied.
        draft_weights: the same of the MTP head without the model's head.
        embedding: bytes of the embedding, of which a token reads a row.
        beside: bytes of weights that no token of text reads: the vision tower's.
        tower_bytes: that the vision tower's largest call works in.
        slot_bytes: recurrent state of a sequence.
        token_bytes: K/V of a token: the text model's, and the MTP head's.
        narrow: whether most weights are FP8.
    """

    weights: Mapping[str, tuple[float, float]]
    draft_weights: Mapping[str, tuple[float, float]]
    embedding: float
    beside: float
    tower_bytes: float
    slot_bytes: float
    token_bytes: float
    draft_token_bytes: float
    hidden: int
    layers: int
    attention_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    delta_heads: int
    delta_dims: tuple[int, int]
    experts: int
    experts_per_token: int
    narrow: bool
    max_context: int

    @property
    def stored_bytes(self) -> float:
        """All weights, resident."""
        used = [*self.weights.values(), *self.draft_weights.values()]
        return sum(nbytes for nbytes, _ in used) + self.embedding + self.beside

    @lru_cache(maxsize=1024)  # noqa: B019  # models are few, and live as long as the process
    def work(self, call: Call) -> Mapping[str, Work]:
        """What the call moves and computes, by kind; caches and states by themselves."""
        fed = call.rows * call.tokens
        found = {kind: self._weights(self.weights, kind, fed, call) for kind in self.weights}
        pairs = call.rows * (call.tokens * call.past + call.tokens * (call.tokens + 1) / 2)
        scores = 4.0 * self.attention_layers * self.heads * self.head_dim * pairs
        seen = call.rows * (call.past + call.tokens) * self.token_bytes
        found[CACHE] = Work(seen, 0.0, scores)
        per_token = 6.0 * self.delta_heads * math.prod(self.delta_dims) * (self.layers - self.attention_layers)
        found[RECURRENT] = Work(2 * call.rows * self.slot_bytes, 0.0, per_token * fed)
        if call.drafts:
            one = [self._weights(self.draft_weights, kind, call.rows, call) for kind in self.draft_weights]
            one += [self._weights(self.weights, HEAD, call.rows, replace(call, logits=1))]
            one += [Work(call.rows * call.past * self.draft_token_bytes)]
            total = sum(one, Work())
            found[DRAFTS] = Work(*(call.drafts * x for x in (total.nbytes, total.flops, total.wide)))
        return found

    def _weights(self, weights: Mapping[str, tuple[float, float]], kind: str, fed: int, call: Call) -> Work:
        nbytes, elements = weights[kind]
        if kind == HEAD:
            return Work(nbytes, 2.0 * elements * call.rows * call.logits)
        if kind == EXPERTS and self.experts:
            share = self.experts_per_token / self.experts
            return Work(nbytes * (1 - (1 - share) ** fed), 2.0 * elements * share * fed)
        return Work(nbytes, 2.0 * elements * fed)


def read_model(manifest: Manifest, *, float_weights: bool = False, cache_bytes: int = 2) -> Model:
    """The sizes of an exported model.

    Args:
        float_weights: weights and caches as ONNX Runtime holds them on a CPU, in float32.
        cache_bytes: of an element of K/V elsewhere: 2 for BF16, 1 for FP8.
    """
    spec, graphs = manifest.spec, manifest.graphs
    tied, moe = bool(spec["tie_word_embeddings"]), spec.get("moe") or {}
    text = _by_kind(manifest, "model", float_weights)
    embedding = 0.0
    for name in graphs["model"].weights:
        if name.endswith(EMBEDDING) and not tied:
            nbytes, elements = _size(manifest, name, float_weights)
            embedding += nbytes
            text[HEAD] = (text[HEAD][0] - nbytes, text[HEAD][1] - elements)
    mtp = _by_kind(manifest, "mtp", float_weights) if "mtp" in graphs else {}
    mtp.pop(HEAD, None)  # the text model's
    others = {name for graph, entry in graphs.items() if graph not in ("model", "mtp") for name in entry.weights}
    kinds = list(spec["layer_types"])
    element = 4 if float_weights else cache_bytes
    linears = [manifest.tensors[n] for n in graphs["model"].weights if n.endswith("proj.weight") or ".experts." in n]
    wide = sum(t.nbytes for t in linears if t.dtype not in ("F8_E4M3", "F8_E5M2"))
    return Model(
        weights=text,
        draft_weights=mtp,
        embedding=embedding,
        beside=sum(_size(manifest, name, float_weights)[0] for name in others),
        tower_bytes=_tower_bytes(manifest, float_weights),
        slot_bytes=sum(_bytes(s) for s in graphs["model"].states if "capacity" not in s.axes),
        token_bytes=_cache(graphs["model"].states, element),
        draft_token_bytes=_cache(graphs["mtp"].states, element) if mtp else 0.0,
        hidden=int(spec["hidden_size"]),
        layers=len(kinds),
        attention_layers=kinds.count("full_attention"),
        heads=int(spec["num_attention_heads"]),
        kv_heads=int(spec["num_key_value_heads"]),
        head_dim=int(spec["head_dim"]),
        delta_heads=int(spec["linear_num_value_heads"]),
        delta_dims=(int(spec["linear_key_head_dim"]), int(spec["linear_value_head_dim"])),
        experts=int(moe.get("num_experts", 0)),
        experts_per_token=int(moe.get("num_experts_per_tok", 0)),
        narrow=wide < sum(t.nbytes for t in linears) / 2,
        max_context=manifest.max_context,
    )


def decode_weight_bytes(manifest: Manifest, rows: int = 1, tokens: int = 1) -> int:
    """Bytes of weights, as stored, that a step reads: of the embedding a row, of the experts those that are chosen, as
    many as chance has it."""
    model = read_model(manifest)
    work = model.work(Call(rows, tokens))
    return round(sum(work[kind].nbytes for kind in model.weights))


def _by_kind(manifest: Manifest, graph: str, float_weights: bool) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for name in manifest.graphs[graph].weights:
        kind = next((kind for part, kind in _KINDS if part in name), OTHER)
        nbytes, elements = _size(manifest, name, float_weights)
        before = found.get(kind, (0.0, 0.0))
        found[kind] = (before[0] + nbytes, before[1] + elements)
    return found


def _size(manifest: Manifest, name: str, float_weights: bool) -> tuple[float, float]:
    """Bytes, and elements that are multiplied: a scale is part of its weight."""
    tensor = manifest.tensors[name]
    count = 0 if name.endswith(_SCALES) else math.prod(tensor.shape)
    if name.endswith(_PACKED):
        return float(tensor.nbytes), 2.0 * count
    return (4.0 * count if float_weights else float(tensor.nbytes)), float(count)


def _bytes(state: StateEntry) -> float:
    return 4.0 * math.prod(state.shape({"B": 1}))


def _cache(states: list[StateEntry], element: int) -> float:
    return float(element * sum(math.prod(s.shape({"B": 1, "capacity": 1})) for s in states if "capacity" in s.axes))


def _tower_bytes(manifest: Manifest, float_weights: bool) -> float:
    vision = manifest.vision
    if vision is None:
        return 0.0
    return vision.hidden * (CALL_PATCHES * TOWER_BYTES if float_weights else vision.max_patches * TOWER_PLAN_BYTES)
