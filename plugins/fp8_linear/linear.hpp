// launch.py and plugin.py of the block-FP8 linear in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>

#include "prefill.hpp"

namespace deltart::fp8_block_linear {

constexpr int64_t TILES[] = {1, 2, 4};  // tokens per block, in eights
constexpr int64_t ROWS = 16;            // of the weight, per warp
constexpr int64_t TILE_STRIDE = 20;
constexpr int64_t RING_BYTES = 4 * 2048;  // of a warp
constexpr int64_t ENOUGH_WARPS = 1700;
constexpr int64_t MAX_WARPS = 8, MAX_GROUPS = 4;

// How a block divides its work: tokens (in eights), 16-row groups of each weight, parts of K, and weights.
struct Split {
  int64_t tiles, row_groups, parts, weights;

  int64_t warps() const { return row_groups * parts * weights; }
  int64_t shared_bytes() const { return warps() * (4 * 8 * tiles * TILE_STRIDE + RING_BYTES); }
};

inline Split split(const Shape& shape, int64_t weights) {
  int64_t tiles = TILES[2];
  for (int64_t t : {TILES[1], TILES[0]})
    if (shape.rows <= 8 * t) tiles = t;
  int64_t warps = weights * ceil_div(shape.n, ROWS);
  int64_t parts = 1, limit = std::min(MAX_WARPS / weights, ceil_div(shape.k, SCALE_BLOCK));
  while (2 * parts <= limit && warps * parts < ENOUGH_WARPS) parts *= 2;
  int64_t row_groups = tiles <= 2 ? 1 : std::min(MAX_GROUPS, MAX_WARPS / (parts * weights));
  return {tiles, row_groups, parts, weights};
}

// Decode: y of one weight, or of a gate and an up weight together.
inline Launch decode(const std::string& kernel, const Call& call, const Shape& shape, Names weights) {
  Split by = split(shape, static_cast<int64_t>(weights.size()) / 2);
  check(shape);
  Arguments args;
  args.pointers(call, {"x"})
      .pointers(call, weights)
      .ints({shape.scale_dtype == DType::bf16})
      .pointers(call, {"y"})
      .ints({shape.rows, shape.n, shape.k, by.row_groups});
  return {kernel + "_" + name(shape.dtype) + "_m" + std::to_string(by.tiles),
          {ceil_div(shape.rows, 8 * by.tiles), ceil_div(shape.n, ROWS * by.row_groups), 1},
          32 * by.warps(), by.shared_bytes(), args};
}

inline int64_t workspace_bytes(const Call& call) { return scratch(call, shape_of(call)).bytes; }

inline Launches launches(const Call& call) {
  Shape shape = shape_of(call);
  Names weight = {"weight", "weight_scale_inv"};
  if (is_decode(call, shape)) return {"decode.cu", {decode("fp8_block_linear_decode", call, shape, weight)}};
  const TileKernel& kernel = tile_kernel(call);
  auto run = is_quantized(call) ? prefill_w8a8 : prefill;
  return {kernel.source, run(scratch(call, shape).added_to(call), shape, kernel, weight, "y")};
}

}  // namespace deltart::fp8_block_linear
