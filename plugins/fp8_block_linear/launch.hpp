// launch.py and plugin.py of the block-FP8 linear in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>

#include "../native/launch.hpp"

namespace deltart::fp8_block_linear {

constexpr int64_t SCALE_BLOCK = 128;
constexpr int64_t TILES[] = {1, 2, 4};  // tokens per block, in eights
constexpr int64_t ROWS = 16;            // of the weight, per warp
constexpr int64_t TILE_STRIDE = 20;
constexpr int64_t ENOUGH_WARPS = 2048;
constexpr int64_t MOST_WARPS = 8;
constexpr int64_t TILE = 128;                                  // tokens, and rows of the weight, per prefill block
constexpr int64_t PREFILL_SHARED = 3 * TILE * (160 + 80);      // stages of x and weight, in bytes
constexpr int64_t MOST_DECODE = 64;                            // tokens; the tile kernel takes more

struct Shape {
  int64_t rows, n, k;
  DType dtype, scale_dtype;
};

inline Shape shape_of(const Call& call) {
  return {call.size("B") * call.size("T"), call.size("N"), call.size("K"), call.dtype("x"),
          call.dtype("weight_scale_inv")};
}

// How a block divides its work: tokens (in eights), 16-row groups of each weight, parts of K, and weights.
struct Split {
  int64_t tiles, row_groups, parts, weights;

  int64_t warps() const { return row_groups * parts * weights; }
  int64_t shared_bytes() const { return 4 * warps() * 8 * tiles * TILE_STRIDE; }
};

inline Split split(const Shape& shape, int64_t weights) {
  int64_t tiles = TILES[2];
  for (int64_t t : {TILES[1], TILES[0]})
    if (shape.rows <= 8 * t) tiles = t;
  int64_t row_groups = tiles <= 2 ? 1 : 4;
  int64_t warps = weights * ceil_div(shape.n, ROWS) * ceil_div(shape.rows, 8 * tiles);
  int64_t parts = 1, most = std::min(MOST_WARPS / (row_groups * weights), ceil_div(shape.k, SCALE_BLOCK));
  while (2 * parts <= most && warps * parts < ENOUGH_WARPS) parts *= 2;
  return {tiles, row_groups, parts, weights};
}

inline void check(const Shape& shape) {
  std::string k = std::to_string(shape.k);
  require(shape.rows > 0 && shape.n > 0,
          "x " + std::to_string(shape.rows) + " x " + k + ", weight " + std::to_string(shape.n) + " x " + k,
          "no empty axis");
  require(shape.k % 16 == 0, "K = " + k, "a multiple of 16");
}

// Few tokens: y of one weight, or of a gate and an up weight together.
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

// Many tokens: `y` of one weight.
inline Launch prefill(const Call& call, const Shape& shape, Names weight, std::string_view y) {
  check(shape);
  require(shape.dtype == DType::bf16, name(shape.dtype) + " activations", "bf16");
  Arguments args;
  args.pointers(call, {"x"})
      .pointers(call, weight)
      .ints({shape.scale_dtype == DType::bf16})
      .pointers(call, {y})
      .ints({shape.rows, shape.n, shape.k});
  return {"fp8_block_linear_prefill_w8a16", {ceil_div(shape.rows, TILE), ceil_div(shape.n, TILE), 1}, 256,
          PREFILL_SHARED, args};
}

inline int64_t workspace_bytes(const Call&) { return 0; }

inline Launches launches(const Call& call) {
  Shape shape = shape_of(call);
  Names weight = {"weight", "weight_scale_inv"};
  if (shape.rows <= MOST_DECODE || shape.dtype == DType::f32)
    return {"decode.cu", {decode("fp8_block_linear_decode", call, shape, weight)}};
  return {"prefill.cu", {prefill(call, shape, weight, "y")}};
}

}  // namespace deltart::fp8_block_linear
