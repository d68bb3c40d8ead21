// launch.py, prefill.py, projections.py and plugin.py of the int4 linears in C++; tests/plugins/test_native_launches.py
// holds them equal.
#pragma once
#include "../fp8_linear/launch.hpp"

namespace deltart::int4_linear {

namespace fp8 = fp8_block_linear;

constexpr int64_t ROWS = 16;           // of the weight, per warp
constexpr int64_t STAGE_COLUMNS = 256;  // of K, per warp and stage
constexpr int64_t RING_BYTES = 3 * (16 * 128 + 16 * 36);
constexpr int64_t ENOUGH_WARPS = 2048;
constexpr int64_t MAX_WARPS = 4;
constexpr int64_t PIECE = 32;  // values in 16 bytes
constexpr int64_t SHARE = 8 * 256;  // values of y per block of the gated product
constexpr size_t MAX_INT4 = 3, MAX_PLAIN = 2;

inline constexpr fp8::TileKernel KERNEL = {"int4_linear_prefill", "prefill.cu", fp8::TILE, 256,
                                           3 * fp8::TILE * (128 + 32 + 12)};

struct Shape {
  int64_t rows, n, k, group;
  DType dtype, scale_dtype;

  // A block-FP8 linear with as many tiles and blocks of K.
  fp8::Shape alike() const { return {rows, n, k, dtype, scale_dtype}; }
  bool is_decode() const { return rows <= fp8::MAX_DECODE || dtype == DType::f32; }
};

inline Shape shape_of(const Call& call, int64_t n, std::string_view scale, std::string_view tokens = "T") {
  int64_t group = call.size("group_size"), groups = call.size("groups"), bytes = call.size("group_bytes");
  int64_t k = call.size("K");
  require(groups * group == k && bytes * 2 == group,
          std::to_string(groups) + " groups of " + std::to_string(group) + " values, " + std::to_string(bytes) +
              " bytes each",
          "those of K = " + std::to_string(k));
  return {call.size("B") * call.size(tokens), n, k, group, call.dtype("x"), call.dtype(scale)};
}

inline void check(const Shape& shape) {
  std::string k = std::to_string(shape.k), group = std::to_string(shape.group);
  require(shape.rows > 0 && shape.n > 0 && shape.k > 0,
          "x " + std::to_string(shape.rows) + " x " + k + ", weight " + std::to_string(shape.n) + " x " + k,
          "no empty axis");
  bool known = false;
  for (int64_t size : {32, 64, 128, 256}) known = known || shape.group == size;
  require(known, "int4 groups of " + group, "32, 64, 128, 256 values a group");
  require(shape.k % shape.group == 0, "K = " + k, "a multiple of the group, " + group);
}

// How a block divides its work; see launch.py.
struct Split {
  int64_t tiles, row_groups, parts, weights, ring_bytes = RING_BYTES;

  int64_t warps() const { return row_groups * parts * weights; }
  int64_t shared_bytes() const { return warps() * (4 * 8 * tiles * fp8::TILE_STRIDE + ring_bytes); }
};

inline Split split(const Shape& shape, int64_t weights) {
  int64_t tiles = fp8::TILES[2];
  for (int64_t t : {fp8::TILES[1], fp8::TILES[0]})
    if (shape.rows <= 8 * t) tiles = t;
  int64_t warps = weights * ceil_div(shape.n, ROWS);
  int64_t parts = 1, limit = std::min(MAX_WARPS / weights, ceil_div(shape.k, STAGE_COLUMNS));
  while (2 * parts <= limit && warps * parts < ENOUGH_WARPS) parts *= 2;
  return {tiles, tiles <= 2 ? 1 : MAX_WARPS / (parts * weights), parts, weights};
}

// As the kernels number it.
inline int64_t scale_type(DType type) { return type == DType::f32 ? 0 : type == DType::bf16 ? 1 : 2; }

// Scales of a row, and the power of two of pieces that share one.
inline void add_layout(Arguments& args, const Shape& shape) {
  int64_t shift = 0;
  while (PIECE << (shift + 1) <= shape.group) ++shift;
  args.ints({shape.k / shape.group, shift});
}

inline Launch product(const std::string& kernel, const Call& call, const Shape& shape, Names weights,
                      std::string_view y) {
  Split by = split(shape, static_cast<int64_t>(weights.size()) / 2);
  check(shape);
  Arguments args;
  args.pointers(call, {"x"})
      .pointers(call, weights)
      .ints({scale_type(shape.scale_dtype)})
      .pointers(call, {y})
      .ints({shape.rows, shape.n, shape.k});
  add_layout(args, shape);
  args.ints({by.row_groups});
  return {"int4_linear_" + kernel + "_" + name(shape.dtype) + "_m" + std::to_string(by.tiles),
          {ceil_div(shape.rows, 8 * by.tiles), ceil_div(shape.n, ROWS * by.row_groups), 1},
          32 * by.warps(), by.shared_bytes(), args};
}

// Bytes of the sums of a split K, of the widest weight's shape.
inline int64_t partial_bytes(const Shape& shape) {
  if (shape.is_decode()) return 0;
  int64_t most = 4 * std::min(fp8::MAX_SPLITS * shape.rows * shape.n, fp8::MAX_ITEMS * fp8::TILE * fp8::TILE);
  return ceil_div(most, fp8::ALIGNMENT) * fp8::ALIGNMENT;
}

// The tiles of `y` by one weight, and the sum over the splits of K where there are any.
inline std::vector<Launch> prefill(const Call& call, const Shape& shape, Names weight, std::string_view y) {
  check(shape);
  require(shape.dtype == DType::bf16, name(shape.dtype) + " activations", "bf16");
  int64_t count = fp8::splits(shape.alike(), KERNEL);
  Arguments args;
  args.pointers(call, {"x"})
      .pointers(call, weight)
      .ints({scale_type(shape.scale_dtype)})
      .pointers(call, {y})
      .address(count > 1 ? call.address("workspace") : 0)
      .ints({shape.rows, shape.n, shape.k});
  add_layout(args, shape);
  std::vector<Launch> list = {{KERNEL.name,
                               {ceil_div(shape.rows, KERNEL.tokens), ceil_div(shape.n, fp8::TILE), count},
                               KERNEL.threads, KERNEL.shared_bytes, args}};
  if (count > 1) {
    Arguments sums;
    sums.pointers(call, {"workspace", y}).ints({count, shape.rows * shape.n});
    list.push_back({"int4_linear_add_splits", {ceil_div(shape.rows * shape.n, 256), 1, 1}, 256, 0, sums});
  }
  return list;
}

}  // namespace deltart::int4_linear

namespace deltart::int4_group_linear {

inline int4_linear::Shape shape_of(const Call& call) {
  return int4_linear::shape_of(call, call.size("N"), "weight_scale");
}

inline int64_t workspace_bytes(const Call& call) { return int4_linear::partial_bytes(shape_of(call)); }

inline Launches launches(const Call& call) {
  int4_linear::Shape shape = shape_of(call);
  Names weight = {"weight_groups", "weight_scale"};
  if (shape.is_decode()) return {"decode.cu", {int4_linear::product("decode", call, shape, weight, "y")}};
  return {"prefill.cu", int4_linear::prefill(call, shape, weight, "y")};
}

}  // namespace deltart::int4_group_linear

namespace deltart::int4_group_gate_up {

inline int4_linear::Shape shape_of(const Call& call) {
  std::string first = name(call.dtype("weight_scale")), second = name(call.dtype("up_scale"));
  require(first == second, "scales stored as " + first + " and " + second, "one type for both");
  return int4_group_linear::shape_of(call);
}

// What a linear takes, and the gate; nothing in decode.
inline int64_t workspace_bytes(const Call& call) {
  int4_linear::Shape shape = shape_of(call);
  return shape.is_decode() ? 0 : int4_linear::partial_bytes(shape) + 2 * shape.rows * shape.n;
}

// Decode takes one launch, a prompt the tile kernel twice and a product.
inline Launches launches(const Call& call) {
  int4_linear::Shape shape = shape_of(call);
  Names gate = {"weight_groups", "weight_scale"}, up = {"up_groups", "up_scale"};
  Names both = {"weight_groups", "weight_scale", "up_groups", "up_scale"};
  if (shape.is_decode()) return {"decode.cu", {int4_linear::product("gate_up", call, shape, both, "y")}};
  Call with = call;
  with.at["gate"] = call.address("workspace") + int4_linear::partial_bytes(shape);
  std::vector<Launch> list = int4_linear::prefill(with, shape, gate, "gate");
  for (Launch& launch : int4_linear::prefill(with, shape, up, "y")) list.push_back(launch);
  int64_t count = shape.rows * shape.n;
  Arguments args;
  args.pointers(with, {"gate", "y"}).count(count);
  list.push_back({"int4_linear_silu_mul", {ceil_div(count, int4_linear::SHARE), 1, 1}, 256, 0, args});
  return {"prefill.cu", list};
}

}  // namespace deltart::int4_group_gate_up

namespace deltart::int4_lm_head {

inline int64_t workspace_bytes(const Call&) { return 0; }

inline Launches launches(const Call& call) {
  int4_linear::Shape shape = int4_linear::shape_of(call, call.size("V"), "weight_scale", "L");
  std::string kernel = shape.dtype == DType::f32 ? "decode" : "logits";
  return {"decode.cu", {int4_linear::product(kernel, call, shape, {"weight_groups", "weight_scale"}, "logits")}};
}

}  // namespace deltart::int4_lm_head

namespace deltart::int4_linear {

using fp8::Members;

// Any number of tokens, meant for 1 to 64. `shape.n` is of no account.
inline Launch decode_together(const Call& call, Shape shape, const Members& members) {
  Members int4 = fp8::with_scales(members, true), plain = fp8::with_scales(members, false);
  require(int4.size() <= MAX_INT4 && plain.size() <= MAX_PLAIN,
          std::to_string(int4.size()) + " int4 weights and " + std::to_string(plain.size()) + " others",
          "up to " + std::to_string(MAX_INT4) + " and " + std::to_string(MAX_PLAIN));
  int64_t sum = 0, least = members[0].n, blocks = 0;
  for (const fp8::Projection& member : members) sum += member.n, least = std::min(least, member.n);
  shape.n = least;
  check(shape);
  shape.n = sum;
  Split by = split(shape, 1);
  by.row_groups = MAX_WARPS / by.parts;
  by.ring_bytes = std::max(RING_BYTES, fp8::RING_BYTES);
  for (const fp8::Projection& member : plain) blocks += ceil_div(member.n, ROWS);
  for (const fp8::Projection& member : int4) blocks += ceil_div(member.n, ROWS * by.row_groups);
  int4.resize(MAX_INT4, {0, "none", "none", "none"});
  plain.resize(MAX_PLAIN, {0, "none", "none", ""});
  Arguments args;
  args.pointers(call, {"x"}).ints({scale_type(shape.scale_dtype)});
  for (const fp8::Projection& member : int4)
    args.optional(call, {member.weight, member.scale, member.y}).ints({member.n});
  for (const fp8::Projection& member : plain) args.optional(call, {member.weight, member.y}).ints({member.n});
  args.ints({shape.rows, shape.k});
  add_layout(args, shape);
  args.ints({by.row_groups});
  return {"int4_linear_projections_" + name(shape.dtype) + "_m" + std::to_string(by.tiles),
          {ceil_div(shape.rows, 8 * by.tiles), blocks, 1}, 32 * by.warps(), by.shared_bytes(), args};
}

// Sizes and types of a call, n that of the widest int4 weight.
inline Shape shape_of_widest(const Call& call, const Members& members) {
  return shape_of(call, fp8::widest(call, members).n, fp8::with_scales(members, true)[0].scale);
}

inline int64_t workspace_bytes(const Call& call, const Members& members) {
  return partial_bytes(shape_of_widest(call, members));
}

// Decode takes one launch; a prompt the tile kernel on each int4 weight, and one launch for the others.
inline Launches launches(const Call& call, const Members& members) {
  Shape shape = shape_of_widest(call, members);
  if (shape.is_decode()) return {"projections.cu", {decode_together(call, shape, members)}};
  std::vector<Launch> list;
  for (const fp8::Projection& member : fp8::with_scales(members, true)) {
    shape.n = member.n;
    for (Launch& launch : prefill(call, shape, {member.weight, member.scale}, member.y)) list.push_back(launch);
  }
  Members plain = fp8::with_scales(members, false);
  if (!plain.empty()) list.push_back(decode_together(call, shape, plain));
  return {"prefill.cu", list};
}

}  // namespace deltart::int4_linear

namespace deltart::int4_attention_projections {

inline int4_linear::Members members(const Call& call) {
  return {{call.size("Nq"), "q_groups", "q", "q_scale"},
          {call.size("Nk"), "k_groups", "k", "k_scale"},
          {call.size("Nv"), "v_groups", "v", "v_scale"}};
}

inline int64_t workspace_bytes(const Call& call) { return int4_linear::workspace_bytes(call, members(call)); }

inline Launches launches(const Call& call) { return int4_linear::launches(call, members(call)); }

}  // namespace deltart::int4_attention_projections

namespace deltart::int4_delta_net_projections {

inline int4_linear::Members members(const Call& call) {
  return {{call.size("Nqkv"), "qkv_groups", "qkv", "qkv_scale"},
          {call.size("Nz"), "z_groups", "z", "z_scale"},
          {call.size("Ha"), "a_weight", "a", ""},
          {call.size("Hb"), "b_weight", "b", ""}};
}

inline int64_t workspace_bytes(const Call& call) { return int4_linear::workspace_bytes(call, members(call)); }

inline Launches launches(const Call& call) { return int4_linear::launches(call, members(call)); }

}  // namespace deltart::int4_delta_net_projections
