// launch.py and plugin.py of the routed experts in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>
#include <iterator>
#include <set>

#include "../fp8_linear/prefill.hpp"
#include "../native/launch.hpp"

namespace deltart::moe_experts {

constexpr int64_t TILES[] = {1, 2, 8};  // tokens that chose one expert, in eights
constexpr int64_t MAX_DECODE_TOKENS = 64, MAX_DECODE_PLACES = 1024;
constexpr int64_t ALIGNMENT = 256;  // of the arrays in the workspace
constexpr int64_t TILE_STRIDE = 20, SUM_STRIDE = 17;
constexpr int64_t RING_BYTES = 4 * 2048;     // of a warp
constexpr int64_t SMALL_SHARED = 99 << 10;  // bytes of shared memory that every GPU gives a block
constexpr int64_t HALF_ROWS = 8, ROWS = 16;  // of a weight: a block of gate_up, and of down
constexpr int64_t GATE_UP_WARPS = 4, MIN_WARPS = 4, MAX_WARPS = 10, MAX_WARPS_OF_MANY = 8;
constexpr int64_t ROUTE_THREADS = 256, THREADS = 256, QUANTIZE_LANES = 16;
constexpr int64_t TILE_TOKENS = 64, BLOCK = 128;  // TILE_TOKENS: the fewest of any kernel

struct Shape {
  int64_t rows, tokens, hidden, experts, chosen, width, shared, stored_experts;
  DType dtype, scale_dtype;
  bool is_fp8, quantized;

  int64_t choices() const { return chosen + (shared > 0); }
  int64_t places() const { return rows * choices(); }
  int64_t stride() const { return std::max(width, shared); }
  int64_t groups() const { return stored_experts + (shared > 0); }
  bool is_decode() const { return !quantized && rows <= MAX_DECODE_TOKENS && places() <= MAX_DECODE_PLACES; }
};

inline std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& one : names) text += (text.empty() ? "" : " and ") + one;
  return text;
}

// Whether activations may be rounded to E4M3, and whether a GPU has a product for that.
inline bool is_quantized(const Call& call) {
  return call.sizes.count("quantize_activations") && call.size("quantize_activations");
}
inline bool multiplies_e4m3(int64_t capability) {
  return capability == 89 || capability == fp8_block_linear::HOPPER || capability >= 120;
}

inline Shape shape_of(const Call& call, bool quantizes) {
  auto kinds_of = [&](Names tensors) {
    std::set<std::string> kinds;
    for (std::string_view tensor : tensors)
      if (call.dtypes.count(tensor)) kinds.insert(name(call.dtype(tensor)));
    return kinds;
  };
  std::set<std::string> scales = kinds_of({"experts_scale", "shared_gate_scale_inv", "shared_up_scale_inv", "shared_down_scale_inv"});
  require(scales.size() <= 1, "scales stored as " + joined(scales), "one type for all");
  std::set<std::string> plain =
      kinds_of({"gate_up", "down", "shared_gate", "shared_up", "shared_down", "shared_expert_gate"});
  plain.erase("i8"), plain.erase("bf16");
  require(plain.empty(), "weights stored as " + joined(plain), "bf16");
  bool is_fp8 = call.dtypes.count("experts"), has_shared = call.sizes.count("shared_size");
  return {call.size("B") * call.size("T"),
          call.size("T"),
          call.size("hidden_size"),
          call.size("E"),
          call.size("num_experts_per_tok"),
          call.size("intermediate_size"),
          has_shared ? call.size("shared_size") : 0,
          is_fp8 ? call.size("S") : call.size("E"),
          call.dtype("x"),
          is_fp8 ? call.dtype("experts_scale") : DType::f32,
          is_fp8,
          quantizes};
}

// Bytes of the scratch arrays by name; enough for any call with fewer tokens too.
inline std::vector<std::pair<std::string_view, int64_t>> workspace(const Shape& shape) {
  int64_t places = 4 * shape.places();
  int64_t h = shape.places() * shape.stride() * (shape.dtype == DType::bf16 ? 2 : 4);
  std::vector<std::pair<std::string_view, int64_t>> arrays = {{"slot", places}, {"weight", places}, {"h", h}};
  if (shape.is_decode()) return arrays;
  arrays.insert(arrays.end(), {{"count", 4 * shape.groups()}, {"place", places}, {"position", places}});
  int64_t tiles = shape.places() / TILE_TOKENS + shape.groups();
  for (std::string_view array : {"tile_slot", "tile_first", "tile_tokens"}) arrays.emplace_back(array, 4 * tiles);
  arrays.emplace_back("rows", 2 * shape.places() * shape.hidden);
  if (shape.quantized) {
    int64_t groups = std::max(shape.rows * ceil_div(shape.hidden, BLOCK), shape.places() * ceil_div(shape.stride(), BLOCK));
    arrays.emplace_back("codes", std::max(shape.rows * shape.hidden, shape.places() * shape.stride()));
    arrays.emplace_back("scales", 4 * groups);
  }
  return arrays;
}

inline int64_t aligned(int64_t size) { return ceil_div(size, ALIGNMENT) * ALIGNMENT; }

inline int64_t workspace_bytes(const Call& call) {
  int64_t bytes = 0;
  for (auto [array, size] : workspace(shape_of(call, is_quantized(call)))) bytes += aligned(size);
  return bytes;
}

inline void check(const Shape& shape) {
  std::string found = "hidden " + std::to_string(shape.hidden) + ", width " + std::to_string(shape.width) + ", shared " +
                      std::to_string(shape.shared);
  require(shape.rows > 0 && std::min(shape.hidden, shape.width) > 0, found, "no empty axis");
  require(shape.hidden % 16 == 0 && shape.width % 16 == 0 && shape.shared % 16 == 0, found, "multiples of 16");
  require(0 < shape.chosen && shape.chosen <= shape.experts,
          std::to_string(shape.chosen) + " of " + std::to_string(shape.experts) + " experts", "1 to all of them");
  require(shape.is_fp8 || !shape.quantized, "E4M3 activations of bf16 experts", "bf16");
}

inline Launch route(const Call& call, const Shape& shape) {
  int64_t threads = std::min(ROUTE_THREADS, ceil_div(shape.experts, 32) * 32);
  int64_t candidates = ceil_div(shape.experts, 32) * std::min<int64_t>(shape.chosen, 32);
  Arguments args;
  args.pointers(call, {"x", "logits", "n_tokens"})
      .optional(call, {"slot_expert", "shared_expert_gate"})
      .ints({1})
      .pointers(call, {"slot", "weight"})
      .ints({shape.tokens, shape.experts, shape.stored_experts, shape.chosen, shape.hidden});
  return {"moe_experts_route_" + name(shape.dtype), {shape.rows, 1, 1}, threads,
          4 * (2 * shape.experts + 2 * shape.chosen + 2 * candidates + threads / 32), args};
}

// Appends all weights, scales and their sizes.
inline Arguments& add_stored(Arguments& args, const Call& call, const Shape& shape) {
  if (shape.is_fp8)
    args.pointers(call, {"experts", "experts", "experts_scale"});
  else
    args.pointers(call, {"gate_up", "down"}).address(0);
  return args.optional(call, {"shared_gate", "shared_up", "shared_down"})
      .optional(call, {"shared_gate_scale_inv", "shared_up_scale_inv", "shared_down_scale_inv"})
      .ints({shape.scale_dtype == DType::bf16, shape.stored_experts, shape.hidden, shape.width, shape.shared});
}

inline std::string stored(const Shape& shape) { return shape.is_fp8 ? "e4m3" : "bf16"; }

inline void decode(std::vector<Launch>& list, const Call& call, const Shape& shape) {
  int64_t tokens = 8 * *std::find_if(std::begin(TILES), std::end(TILES), [&](int64_t t) { return shape.rows <= 8 * t; });
  int64_t of_warp = RING_BYTES + 4 * (tokens + 1), of_block = 4 * (3 * shape.places() + 1 + shape.places() * SUM_STRIDE);
  int64_t warps = std::min({tokens < 64 ? MAX_WARPS : MAX_WARPS_OF_MANY, std::max(MIN_WARPS, shape.choices()),
                            (SMALL_SHARED - of_block) / of_warp});
  std::string kind = name(shape.dtype) + "_" + stored(shape) + "_m" + std::to_string(tokens / 8);
  Arguments gate_up, down;
  add_stored(gate_up.pointers(call, {"x", "slot", "h"}), call, shape)
      .ints({shape.places(), shape.choices(), shape.stride()});
  add_stored(down.pointers(call, {"h", "slot", "weight", "y"}), call, shape)
      .ints({shape.places(), shape.choices(), shape.stride()});
  list.push_back({"moe_experts_gate_up_" + kind, {ceil_div(shape.stride(), HALF_ROWS), shape.places(), 1},
                  32 * GATE_UP_WARPS,
                  GATE_UP_WARPS * RING_BYTES + 4 * (shape.places() + tokens + 1 + GATE_UP_WARPS * tokens * TILE_STRIDE),
                  gate_up});
  list.push_back({"moe_experts_down_" + kind, {ceil_div(shape.hidden, ROWS), 1, 1}, 32 * warps,
                  warps * of_warp + of_block, down});
}

// Codes and scales of x, or of h, whose rows are the ordered places.
inline Launch quantize(const Call& call, const Shape& shape, bool of_x) {
  int64_t rows = of_x ? shape.rows : shape.places(), k = of_x ? shape.hidden : shape.stride();
  Arguments args;
  if (of_x)
    args.pointers(call, {"x"}).address(0).address(0);
  else
    args.pointers(call, {"h", "slot", "position"});
  args.pointers(call, {"codes", "scales"}).ints({rows, k, shape.stored_experts, shape.width, shape.shared});
  return {"moe_experts_quantize", {ceil_div(rows * ceil_div(k, BLOCK), THREADS / QUANTIZE_LANES), 1, 1}, THREADS, 0, args};
}

// The grouped products of a kind: the end of their names, source, places and rows of W of a tile, threads, bytes of shared
// memory, and whether blocks of threads take tiles by turns.
struct GroupKernel {
  std::string kind;
  const char* source;
  int64_t tokens, rows, threads, shared_bytes;
  bool persistent;

  int64_t tiles(const Shape& shape) const { return shape.places() / tokens + shape.groups(); }
};

// Three stages of rows of x and of W, so many bytes apart.
inline GroupKernel tiles_of_64(const char* kind, int64_t stride_x, int64_t stride) {
  return {kind, "prefill.cu", TILE_TOKENS, 128, THREADS, 3 * (64 * stride_x + 128 * stride) + 4 * 64, false};
}

// wgmma is in sm_90a alone.
inline GroupKernel kernel_of(const Shape& shape, int64_t capability) {
  if (shape.quantized && capability == fp8_block_linear::HOPPER)
    return {"wgmma", "prefill_wgmma.cu", 128, 256, 384, 4 * (3 * 128 * BLOCK + 4 * 128) + 64, true};
  if (shape.quantized) return tiles_of_64("w8a8", 80, 80);
  return shape.is_fp8 ? tiles_of_64("e4m3", 160, 80) : tiles_of_64("bf16", 144, 144);
}

inline void prefill(std::vector<Launch>& list, const Call& call, const Shape& shape, const GroupKernel& kernel) {
  require(shape.dtype == DType::bf16, name(shape.dtype) + " activations of " + std::to_string(shape.rows) + " tokens",
          "bf16");
  Names order = {"place", "tile_slot", "tile_first", "tile_tokens"};
  int64_t partial = 4 * (THREADS / 32), count = shape.rows * shape.hidden, tiles = kernel.tiles(shape);
  Arguments counted, arranged, gate_up, down, combined;
  counted.pointers(call, {"slot", "count"}).ints({shape.places()});
  arranged.pointers(call, {"slot", "count", "place", "position", "tile_slot", "tile_first", "tile_tokens"})
      .ints({shape.places(), shape.groups(), tiles, kernel.tokens});
  auto add_read = [&](Arguments& args, std::string_view tensor) -> Arguments& {
    return shape.quantized ? args.pointers(call, {"codes", "scales"}) : args.pointers(call, {tensor}).address(0);
  };
  add_stored(add_read(gate_up, "x").pointers(call, order).pointers(call, {"h"}), call, shape)
      .ints({shape.choices(), shape.stride()});
  add_stored(add_read(down, "h").pointers(call, {"weight"}).pointers(call, order).pointers(call, {"rows"}), call, shape)
      .ints({shape.stride()});
  combined.pointers(call, {"rows", "position", "y"}).ints({shape.choices(), shape.hidden}).count(count);
  auto product = [&](const std::string& part, int64_t across, Arguments& args) {
    Launch launch{"moe_experts_group_" + part + "_" + kernel.kind, {tiles, across, 1}, kernel.threads,
                  kernel.shared_bytes, {}};
    if (kernel.persistent) {
      args.ints({tiles});
      launch.grid[0] = std::min(tiles * across, call.multiprocessors), launch.grid[1] = 1;
    }
    launch.args = args;
    return launch;
  };
  list.push_back({"moe_experts_count", {shape.groups(), 1, 1}, THREADS, partial, counted});
  list.push_back({"moe_experts_arrange", {shape.groups(), 1, 1}, THREADS, partial, arranged});
  if (shape.quantized) list.push_back(quantize(call, shape, true));
  list.push_back(product("gate_up", ceil_div(shape.stride(), kernel.rows / 2), gate_up));
  if (shape.quantized) list.push_back(quantize(call, shape, false));
  list.push_back(product("down", ceil_div(shape.hidden, kernel.rows), down));
  list.push_back({"moe_experts_combine", {ceil_div(count, 8 * THREADS), 1, 1}, THREADS, 0, combined});
}

inline Launches launches(const Call& call) {
  Shape shape = shape_of(call, is_quantized(call) && multiplies_e4m3(call.capability));
  check(shape);
  Call with = call;
  uint64_t end = call.address("workspace");
  for (auto [array, size] : workspace(shape)) {
    with.at[array] = end;
    end += aligned(size);
  }
  std::vector<Launch> list = {route(with, shape)};
  if (shape.is_decode()) {
    decode(list, with, shape);
    return {"decode.cu", list};
  }
  GroupKernel kernel = kernel_of(shape, call.capability);
  prefill(list, with, shape, kernel);
  return {kernel.source, list};
}

}  // namespace deltart::moe_experts
