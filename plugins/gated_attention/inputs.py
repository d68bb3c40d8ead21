"""Seeded inputs of the gated attention, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deltart.plugins.dtypes import cast, poisoned

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; activations are bf16. cache_dtype is "bf16", or "e4m3" with one scale per KV head.

    page_size 0: the cache is [slots, kv_heads, capacity, head_dim]. Otherwise it is [pages, kv_heads, page_size,
    head_dim], and slot b's i-th page is page_table[b, i].
    """

    slots: int = 1
    tokens: int = 1
    heads: int = 24
    kv_heads: int = 4
    head_dim: int = 256
    capacity: int = 4096
    cache_dtype: str = "bf16"
    page_size: int = 0

    @property
    def max_pages(self) -> int:
        return -(-self.capacity // self.page_size) if self.page_size else 1


def quantize(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x [..., Hkv, L, D] times the f32 reciprocal of scale [Hkv] as E4M3, saturating."""
    return np.clip(x.astype(np.float32) * (np.float32(1) / scale)[:, None, None], -448, 448).astype(E4M3)


def paged(cache: np.ndarray, table: np.ndarray, page_size: int) -> np.ndarray:
    """[B, Hkv, capacity, D] as a pool [pages, Hkv, page_size, D], page table[b, i] holding rows i * page_size on."""
    slots, heads, capacity, dim = cache.shape
    padded = np.zeros((slots, heads, table.shape[1] * page_size, dim), cache.dtype)
    padded[:, :, :capacity] = cache
    pool = np.zeros((table.size, heads, page_size, dim), cache.dtype)
    pool[table] = padded.reshape(slots, heads, -1, page_size, dim).transpose(0, 2, 1, 3, 4)
    return pool


def gathered(pool: np.ndarray, table: np.ndarray, capacity: int) -> np.ndarray:
    """The inverse of `paged`."""
    pages = pool[table].transpose(0, 2, 1, 3, 4)  # [B, Hkv, max_pages, page_size, D]
    return pages.reshape(pages.shape[0], pages.shape[1], -1, pages.shape[-1])[:, :, :capacity]


def make(shape: Shape, seed: int, past_len: np.ndarray, n_tokens: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All operands; k_cache and v_cache as the shape stores them, NaN where no key is.

    The queries lean towards the newest keys: a key too many, or one too few, is half of the output.
    """
    rng = np.random.default_rng(seed)
    n = np.full(shape.slots, shape.tokens, np.int32) if n_tokens is None else n_tokens.astype(np.int32)
    rows, group = (shape.slots, shape.tokens), shape.heads // shape.kv_heads
    k, v = (rng.standard_normal((*rows, shape.kv_heads, shape.head_dim), np.float32) for _ in range(2))
    q = rng.standard_normal((*rows, shape.heads, shape.head_dim), np.float32)
    target = np.concatenate([k[:, 1:], k[:, :1]], 1) + k  # a token's own key, and the next one, which it may not see
    q += np.repeat(target, group, 2) * (np.log(past_len.max() + 2.0) / shape.head_dim**0.5)
    gate = 2 * rng.standard_normal((*rows, shape.heads, shape.head_dim), np.float32)
    dead = np.arange(shape.tokens)[None] >= n[:, None]
    for array, poison in ((q, np.nan), (k, np.inf), (v, np.inf), (gate, np.nan)):
        array[dead] = poison  # infinite keys: in a cache they differ from the rows that nobody wrote
    given = {name: cast(x.reshape(*rows, -1), "bf16") for name, x in (("q", q), ("k", k), ("v", v), ("gate", gate))}
    return given | caches(shape, rng, past_len) | {"past_len": past_len.astype(np.int32), "n_tokens": n}


def caches(shape: Shape, rng: np.random.Generator, past_len: np.ndarray) -> dict[str, np.ndarray]:
    """k_cache and v_cache, with k_scale and v_scale for E4M3 and page_table for pages."""
    size = (shape.slots, shape.kv_heads, shape.capacity, shape.head_dim)
    unused = np.arange(shape.capacity)[None] >= past_len[:, None]
    found: dict[str, np.ndarray] = {}
    for name in ("k", "v"):
        cache = rng.standard_normal(size, np.float32)
        cache.transpose(0, 2, 1, 3)[unused] = np.nan
        if shape.cache_dtype == "e4m3":
            found[f"{name}_scale"] = rng.uniform(0.005, 0.02, shape.kv_heads).astype(np.float32)
            found[f"{name}_cache"] = quantize(cache, found[f"{name}_scale"])
        else:
            found[f"{name}_cache"] = cast(cache, "bf16")
    if shape.page_size:
        table = rng.permutation(shape.slots * shape.max_pages).reshape(shape.slots, -1).astype(np.int32)
        found |= {name: paged(found[name], table, shape.page_size) for name in ("k_cache", "v_cache")}
        found["page_table"] = table
    return found


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """o, full of NaN."""
    return {"o": poisoned((shape.slots, shape.tokens, shape.heads * shape.head_dim), "bf16")}
