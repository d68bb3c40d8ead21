// launch.py and plugin.py of the LM head in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../native/launch.hpp"

namespace deltart::lm_head {

constexpr int64_t BLOCK_ROWS = 128;
constexpr int64_t FEW_ROWS = 8192;  // up to as many rows logits are made by blocks of ROWS
constexpr int64_t ROWS = 16;
constexpr int64_t DECODE_TILES = 1, MAX_TILES = 4;  // tokens per block, in eights
constexpr int64_t WARPS = 8;
constexpr int64_t TILE_STRIDE = 20;
constexpr int64_t RING_BYTES = 4 * 2048;

inline int64_t workspace_bytes(const Call&) { return 0; }

// Logits alone: no best tokens, and no subset of the vocabulary.
inline Launches launches(const Call& call) {
  DType weight = call.dtype("weight");
  require(weight == DType::bf16, "a weight stored as " + name(weight), "bf16");
  int64_t rows = call.size("B") * call.size("L"), vocabulary = call.size("V"), k = call.size("K");
  require(k % 16 == 0, "K = " + std::to_string(k), "a multiple of 16");
  int64_t tiles = rows <= 8 * DECODE_TILES ? DECODE_TILES : MAX_TILES;
  int64_t shared = WARPS * (4 * 8 * tiles * TILE_STRIDE + RING_BYTES);
  std::string kind = name(call.dtype("x")) + "_bf16_m" + std::to_string(tiles);
  Arguments args;
  if (vocabulary <= FEW_ROWS) {
    args.pointers(call, {"x", "weight", "logits"}).ints({rows, vocabulary, k});
    Launch few{"lm_head_few_" + kind, {ceil_div(rows, 8 * tiles), ceil_div(vocabulary, ROWS), 1}, 32 * WARPS, shared, args};
    return {"kernel.cu", {few}};
  }
  args.pointers(call, {"x", "weight"})
      .optional(call, {"ids"})
      .pointers(call, {"logits"})
      .optional(call, {"block_logits", "block_ids"})
      .ints({rows, vocabulary, k, vocabulary, vocabulary, 0});
  Launch launch{"lm_head_" + kind, {ceil_div(vocabulary, BLOCK_ROWS), ceil_div(rows, 8 * tiles), 1}, 32 * WARPS, shared, args};
  return {"kernel.cu", {launch}};
}

}  // namespace deltart::lm_head
