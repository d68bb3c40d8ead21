// launch.py and plugin.py of the gated attention in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>

#include "../native/launch.hpp"

namespace deltart::gated_attention {

constexpr int64_t HEAD_DIMS[] = {64, 128, 256};
constexpr int64_t ROW_TILES[] = {1, 3};  // of 16 query rows
constexpr int64_t KEYS = 32;             // per tile
constexpr int64_t BLOCK = 128;
constexpr int64_t BLOCKS = 264;  // in all, two for each multiprocessor of an H100
constexpr int64_t MAX_SPLITS = 128;
constexpr int64_t DECODE_BLOCKS = 256;  // of one slot's decode: KV heads x splits
constexpr int64_t COMBINERS = 4;        // parts of the splits that are added side by side
constexpr int64_t DECODE_TOKENS = 8;  // up to as many a token's sums are the same whatever else is in the call

struct Shape {
  int64_t slots, tokens, heads, kv_heads, head_dim, capacity;
};

inline Shape shape_of(const Call& call) {
  require(call.dtype("q") == DType::bf16, name(call.dtype("q")) + " activations", "bf16");
  return {call.size("B"), call.size("T"), call.size("num_heads"), call.size("num_kv_heads"), call.size("head_dim"),
          call.size("capacity")};
}

// 16-row tiles per block and parts of the keys: they never follow from the capacity or the lengths.
struct Plan {
  Shape shape;
  int64_t row_tiles, splits;

  int64_t token_tiles() const { return ceil_div(shape.tokens, 16 * row_tiles / (shape.heads / shape.kv_heads)); }

  int64_t shared_bytes() const {
    return (16 * row_tiles + 4 * KEYS) * (shape.head_dim + 8) * 2 + 16 * row_tiles * (KEYS + 8) * 4;
  }

  int64_t workspace_bytes() const {
    return splits > 1 ? 4 * shape.slots * shape.tokens * shape.heads * splits * (shape.head_dim + 2) : 0;
  }
};

inline Plan plan(const Shape& shape) {
  bool known = std::find(std::begin(HEAD_DIMS), std::end(HEAD_DIMS), shape.head_dim) != std::end(HEAD_DIMS);
  require(known, "heads of " + std::to_string(shape.head_dim), "one of (64, 128, 256)");
  int64_t group = shape.heads / shape.kv_heads;
  require(shape.heads % shape.kv_heads == 0 && group <= 16,
          std::to_string(shape.heads) + " heads over " + std::to_string(shape.kv_heads),
          "1 to 16 query heads per KV head");
  int64_t tiles = 16 * ROW_TILES[0] / group >= shape.tokens ? ROW_TILES[0] : ROW_TILES[1];
  int64_t blocks = shape.slots * shape.kv_heads * Plan{shape, tiles, 1}.token_tiles();
  int64_t most = shape.tokens <= DECODE_TOKENS ? DECODE_BLOCKS / shape.kv_heads : BLOCKS / blocks;
  return {shape, tiles, std::max<int64_t>(1, std::min(MAX_SPLITS, most))};
}

// The most that any number of tokens up to this one takes: few tokens split the keys into more parts.
inline int64_t workspace_bytes(const Call& call) {
  Shape shape = shape_of(call);
  int64_t largest = 0;
  for (int64_t tokens = 1, last = shape.tokens; tokens <= last; ++tokens) {
    shape.tokens = tokens;
    largest = std::max(largest, plan(shape).workspace_bytes());
  }
  return largest;
}

// prefill.py: many tokens by warpgroup products, which sm_90a alone has.
constexpr int64_t HOPPER = 90, WGMMA_HEAD = 256, WGMMA_ROWS = 128, WGMMA_KEYS = 80, WGMMA_RING = 4, WGMMA_BLOCK = 384;
constexpr int64_t WGMMA_SHARED_BYTES = 2 * WGMMA_HEAD * (WGMMA_ROWS + WGMMA_RING * WGMMA_KEYS) + 16 * WGMMA_RING;
constexpr int64_t ENOUGH_BLOCKS = 66;  // half of an H100's multiprocessors

inline int64_t row_tiles(const Shape& shape) {
  return ceil_div(shape.tokens * (shape.heads / shape.kv_heads), WGMMA_ROWS);
}

inline bool wgmma_serves(const Shape& shape, int64_t capability) {
  return capability == HOPPER && shape.head_dim == WGMMA_HEAD && shape.tokens > DECODE_TOKENS &&
         row_tiles(shape) * shape.slots * shape.kv_heads >= ENOUGH_BLOCKS;
}

inline Launches by_wgmma(const Shape& shape, const Call& call) {
  Arguments args;
  args.pointers(call, {"q", "k", "v", "gate", "k_cache", "v_cache"})
      .optional(call, {"page_table"})
      .pointers(call, {"past_len", "n_tokens", "o"})
      .ints({shape.tokens, shape.heads, shape.kv_heads, shape.capacity, 1});
  Launch launch{"gated_attention_prefill_wgmma", {row_tiles(shape), shape.slots * shape.kv_heads, 1}, WGMMA_BLOCK,
                WGMMA_SHARED_BYTES, args};
  return {"prefill.cu", {launch}};
}

inline Launches launches(const Call& call) {
  Plan by = plan(shape_of(call));
  const Shape& shape = by.shape;
  if (wgmma_serves(shape, call.capability)) return by_wgmma(shape, call);
  Arguments args;
  args.pointers(call, {"q", "k", "v", "gate", "k_cache", "v_cache"})
      .optional(call, {"page_table", "k_scale", "v_scale"})
      .pointers(call, {"past_len", "n_tokens", "o"})
      .optional(call, {"workspace"})
      .ints({shape.tokens, shape.heads, shape.kv_heads, shape.capacity, 1});
  std::string kernel =
      "gated_attention_bf16_d" + std::to_string(shape.head_dim) + "_m" + std::to_string(by.row_tiles);
  std::vector<Launch> list = {
      {kernel, {by.splits, by.token_tiles(), shape.slots * shape.kv_heads}, BLOCK, by.shared_bytes(), args}};
  if (by.splits > 1) {
    Arguments sums;
    sums.optional(call, {"workspace"})
        .pointers(call, {"gate", "past_len", "n_tokens", "o"})
        .ints({by.splits, shape.head_dim});
    int64_t threads = COMBINERS * shape.head_dim / 4, shared = 4 * COMBINERS * (shape.head_dim + 1);
    list.push_back({"gated_attention_combine", {shape.heads, shape.tokens, shape.slots}, threads, shared, sums});
  }
  return {"kernel.cu", list};
}

}  // namespace deltart::gated_attention
