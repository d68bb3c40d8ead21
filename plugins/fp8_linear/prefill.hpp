// prefill.py of the block-FP8 linear in C++: the tile kernels, their splits of K and their scratch.
#pragma once
#include <algorithm>

#include "../native/launch.hpp"

namespace deltart::fp8_block_linear {

constexpr int64_t SCALE_BLOCK = 128;
constexpr int64_t TILE = 128;       // rows of the weight per tile
constexpr int64_t QUANTIZED = 32;  // tokens of a block that quantizes
constexpr int64_t PAIR = 2 * TILE;  // quantized activations are padded to whole pairs of tiles
constexpr int64_t ENOUGH_BLOCKS = 132;
constexpr int64_t MAX_ITEMS = 2 * ENOUGH_BLOCKS;  // tiles times splits, where K is split
constexpr int64_t MAX_SPLITS = 16;
constexpr int64_t SPLIT_COST = 8;  // in blocks of K
constexpr int64_t HOPPER = 90;
constexpr int64_t MULTIPLIES = 89;  // the compute capability, times ten, from which GPUs multiply E4M3
constexpr int64_t ALIGNMENT = 256;   // of the arrays in the workspace
constexpr int64_t MAX_DECODE = 64;  // tokens; the tile kernels take more

struct Shape {
  int64_t rows, n, k;
  DType dtype, scale_dtype;
};

inline Shape shape_of(const Call& call) {
  return {call.size("B") * call.size("T"), call.size("N"), call.size("K"), call.dtype("x"),
          call.dtype("weight_scale_inv")};
}

// Whether activations are rounded to E4M3 on some GPU, and whether on this one: activations.py.
inline bool may_quantize(const Call& call) { return call.size("quantize_activations") != 0; }
inline bool is_quantized(const Call& call) {
  int64_t mode = call.size("quantize_activations");
  return mode == 1 || (mode == 2 && call.capability >= MULTIPLIES);
}

// A tile kernel: entry point, source, tokens per tile, threads and bytes of shared memory per block.
struct TileKernel {
  const char *name, *source;
  int64_t tokens, threads, shared_bytes;

  int64_t tiles(const Shape& shape) const { return ceil_div(shape.rows, tokens) * ceil_div(shape.n, TILE); }
};

inline constexpr TileKernel W8A16 = {"fp8_block_linear_prefill_w8a16", "prefill.cu", TILE, 256,
                                     3 * TILE * (160 + 80)};
inline constexpr TileKernel W8A8 = {"fp8_block_linear_prefill_w8a8", "prefill.cu", TILE, 256,
                                    3 * 2 * TILE * SCALE_BLOCK};
inline constexpr TileKernel W8A8_WGMMA = {"fp8_block_linear_prefill_w8a8_wgmma", "prefill_wgmma.cu", PAIR, 384,
                                          4 * (3 * TILE * SCALE_BLOCK + 4 * PAIR) + 64};

// wgmma is in sm_90a alone.
inline const TileKernel& w8a8_kernel(const Call& call) { return call.capability == HOPPER ? W8A8_WGMMA : W8A8; }

inline bool is_small(const Shape& shape) { return shape.rows <= MAX_DECODE || shape.dtype == DType::f32; }
// Whether the call takes a decode kernel on this GPU, and whether more than that on some GPU.
inline bool is_decode(const Call& call, const Shape& shape) { return !is_quantized(call) && is_small(shape); }
inline bool needs_scratch(const Call& call, const Shape& shape) { return may_quantize(call) || !is_small(shape); }

// The prefill kernel on this GPU.
inline const TileKernel& tile_kernel(const Call& call) { return is_quantized(call) ? w8a8_kernel(call) : W8A16; }

inline void check(const Shape& shape) {
  std::string k = std::to_string(shape.k);
  require(shape.rows > 0 && shape.n > 0 && shape.k > 0,
          "x " + std::to_string(shape.rows) + " x " + k + ", weight " + std::to_string(shape.n) + " x " + k,
          "no empty axis");
  require(shape.k % 16 == 0, "K = " + k, "a multiple of 16");
}

// Parts of K, each with its own tiles: as many as shorten the longest queue by more than they cost.
inline int64_t splits(const Shape& shape, const TileKernel& kernel) {
  int64_t blocks = ceil_div(shape.k, SCALE_BLOCK), tiles = kernel.tiles(shape), best = 1;
  auto cost = [&](int64_t parts) {
    int64_t steps = ceil_div(parts * tiles, ENOUGH_BLOCKS) * ceil_div(shape.k, SCALE_BLOCK * parts);
    return steps + (parts > 1 ? SPLIT_COST : 0);
  };
  for (int64_t parts = 2; parts <= MAX_SPLITS; ++parts)
    if (parts * tiles <= MAX_ITEMS && (parts - 1) * ceil_div(blocks, parts) < blocks && cost(parts) < cost(best))
      best = parts;
  return best;
}

// The scratch arrays of a call, one after the other in the workspace.
struct Scratch {
  std::map<std::string_view, int64_t> offsets;
  int64_t bytes = 0;

  void add(std::string_view array, int64_t size) {
    offsets[array] = bytes;
    bytes += ceil_div(size, ALIGNMENT) * ALIGNMENT;
  }

  // `call` with the arrays' addresses.
  Call added_to(Call call) const {
    for (auto [array, offset] : offsets) call.at[array] = call.address("workspace") + offset;
    return call;
  }
};

// Of the widest weight's `shape`.
inline Scratch scratch(const Call& call, const Shape& shape) {
  bool quantized = may_quantize(call);
  int64_t padded = ceil_div(shape.rows, PAIR) * PAIR, blocks = ceil_div(shape.k, SCALE_BLOCK);
  int64_t partial = 4 * std::min(MAX_SPLITS * shape.rows * shape.n, MAX_ITEMS * (quantized ? PAIR : TILE) * TILE);
  Scratch made;
  if (!needs_scratch(call, shape)) return made;
  if (quantized) {
    made.add("codes", padded * blocks * SCALE_BLOCK);
    made.add("x_scale", 4 * padded * blocks);
  }
  made.add("partial", partial);
  return made;
}

// The tiles of `y` by one weight, and the sum over the splits of K where there are any.
inline std::vector<Launch> prefill(const Call& call, const Shape& shape, const TileKernel& kernel, Names weight,
                                   std::string_view y) {
  check(shape);
  require(shape.dtype == DType::bf16, name(shape.dtype) + " activations", "bf16");
  int64_t count = splits(shape, kernel);
  Arguments args;
  if (&kernel == &W8A16)
    args.pointers(call, {"x"});
  else
    args.pointers(call, {"codes", "x_scale"});
  args.pointers(call, weight)
      .ints({shape.scale_dtype == DType::bf16})
      .pointers(call, {y})
      .address(count > 1 ? call.address("partial") : 0)
      .ints({shape.rows, shape.n, shape.k});
  Launch tiles{kernel.name, {ceil_div(shape.rows, kernel.tokens), ceil_div(shape.n, TILE), count}, kernel.threads,
               kernel.shared_bytes, args};
  if (&kernel == &W8A8_WGMMA) {
    tiles.args.ints({count});
    int64_t blocks = std::min(count * kernel.tiles(shape), call.multiprocessors);
    tiles.grid[0] = blocks, tiles.grid[1] = tiles.grid[2] = 1;
  }
  std::vector<Launch> list = {tiles};
  if (count > 1) {
    Arguments sums;
    sums.pointers(call, {"partial", y}).ints({count, shape.rows * shape.n});
    list.push_back({"fp8_block_linear_add_splits", {ceil_div(shape.rows * shape.n, 256), 1, 1}, 256, 0, sums});
  }
  return list;
}

// As `prefill`, activations rounded to E4M3 per token and 128 of K first.
inline std::vector<Launch> prefill_w8a8(const Call& call, const Shape& shape, const TileKernel& kernel, Names weight,
                                        std::string_view y) {
  check(shape);
  int64_t tokens = ceil_div(shape.rows, PAIR) * PAIR, blocks = ceil_div(shape.k, SCALE_BLOCK);
  Arguments args;
  args.pointers(call, {"x", "codes", "x_scale"}).ints({shape.rows, shape.k});
  std::vector<Launch> list = {{"fp8_block_linear_quantize", {blocks, tokens / QUANTIZED, 1}, 256, 0, args}};
  for (Launch& launch : prefill(call, shape, kernel, weight, y)) list.push_back(launch);
  return list;
}

}  // namespace deltart::fp8_block_linear
