// projections.py in C++: several linears of one x.
#pragma once
#include <set>

#include "linear.hpp"

namespace deltart::fp8_block_linear {

constexpr size_t MAX_FP8 = 3, MAX_PLAIN = 2;

// One weight [n, K]: the names of itself, its y and its scales (block FP8; empty for a bf16 weight).
struct Projection {
  int64_t n;
  std::string_view weight, y, scale;
};

using Members = std::vector<Projection>;

inline Members with_scales(const Members& members, bool scales) {
  Members found;
  for (const Projection& member : members)
    if (member.scale.empty() != scales) found.push_back(member);
  return found;
}

// Any number of tokens, meant for 1 to 64. `shape.n` is of no account.
inline Launch decode_together(const Call& call, Shape shape, const Members& members) {
  Members fp8 = with_scales(members, true), plain = with_scales(members, false);
  require(fp8.size() <= MAX_FP8 && plain.size() <= MAX_PLAIN,
          std::to_string(fp8.size()) + " block-FP8 weights and " + std::to_string(plain.size()) + " others",
          "up to " + std::to_string(MAX_FP8) + " and " + std::to_string(MAX_PLAIN));
  int64_t sum = 0, least = members[0].n, blocks = 0;
  for (const Projection& member : members) sum += member.n, least = std::min(least, member.n);
  shape.n = sum;
  Split by = split(shape, 1);
  shape.n = least;
  check(shape);
  for (const Projection& member : members) blocks += ceil_div(member.n, ROWS * by.row_groups);
  fp8.resize(MAX_FP8, {0, "none", "none", "none"});
  plain.resize(MAX_PLAIN, {0, "none", "none", ""});
  Arguments args;
  args.pointers(call, {"x"}).ints({shape.scale_dtype == DType::bf16});
  for (const Projection& member : fp8) args.optional(call, {member.weight, member.scale, member.y}).ints({member.n});
  for (const Projection& member : plain) args.optional(call, {member.weight, member.y}).ints({member.n});
  args.ints({shape.rows, shape.k, by.row_groups});
  return {"fp8_block_linear_projections_" + name(shape.dtype) + "_m" + std::to_string(by.tiles),
          {ceil_div(shape.rows, 8 * by.tiles), blocks, 1}, 32 * by.warps(), by.shared_bytes(), args};
}

// Any number of bf16 tokens: the tile kernel on each block-FP8 weight, and one launch for the others.
inline std::vector<Launch> prefill_together(const Call& call, Shape shape, const Members& members, const TileKernel& kernel) {
  std::vector<Launch> list;
  for (const Projection& member : with_scales(members, true)) {
    shape.n = member.n;
    auto run = list.empty() && is_quantized(call) ? prefill_w8a8 : prefill;  // codes of the first serve the others
    for (Launch& launch : run(call, shape, kernel, {member.weight, member.scale}, member.y)) list.push_back(launch);
  }
  Members plain = with_scales(members, false);
  if (!plain.empty()) list.push_back(decode_together(call, shape, plain));
  return list;
}

// Sizes and types of a call, n that of the widest block-FP8 weight.
inline Shape widest(const Call& call, const Members& members) {
  std::set<std::string> kinds, others;
  int64_t widest = 0;
  for (const Projection& member : with_scales(members, true)) {
    kinds.insert(name(call.dtype(member.scale)));
    widest = std::max(widest, member.n);
  }
  for (const Projection& member : with_scales(members, false)) others.insert(name(call.dtype(member.weight)));
  auto joined = [](const std::set<std::string>& names) {
    std::string text;
    for (const std::string& type : names) text += (text.empty() ? "" : " and ") + type;
    return text;
  };
  require(kinds.size() == 1, "scales stored as " + joined(kinds), "one type for all");
  require(others.empty() || others == std::set<std::string>{"bf16"}, "weights stored as " + joined(others), "bf16");
  DType scale_dtype = *kinds.begin() == "bf16" ? DType::bf16 : DType::f32;
  return {call.size("B") * call.size("T"), widest, call.size("K"), call.dtype("x"), scale_dtype};
}

inline int64_t workspace_bytes(const Call& call, const Members& members) {
  return scratch(call, widest(call, members)).bytes;
}

// Decode takes one launch.
inline Launches launches(const Call& call, const Members& members) {
  Shape shape = widest(call, members);
  if (is_decode(call, shape)) return {"projections.cu", {decode_together(call, shape, members)}};
  const TileKernel& kernel = tile_kernel(call);
  return {kernel.source, prefill_together(scratch(call, shape).added_to(call), shape, members, kernel)};
}

}  // namespace deltart::fp8_block_linear

namespace deltart::attention_projections {

inline fp8_block_linear::Members members(const Call& call) {
  return {{call.size("Nq"), "q_weight", "q", "q_scale_inv"},
          {call.size("Nk"), "k_weight", "k", "k_scale_inv"},
          {call.size("Nv"), "v_weight", "v", "v_scale_inv"}};
}

inline int64_t workspace_bytes(const Call& call) { return fp8_block_linear::workspace_bytes(call, members(call)); }

inline Launches launches(const Call& call) { return fp8_block_linear::launches(call, members(call)); }

}  // namespace deltart::attention_projections

namespace deltart::delta_net_projections {

inline fp8_block_linear::Members members(const Call& call) {
  return {{call.size("Nqkv"), "qkv_weight", "qkv", "qkv_scale_inv"},
          {call.size("Nz"), "z_weight", "z", "z_scale_inv"},
          {call.size("Ha"), "a_weight", "a", ""},
          {call.size("Hb"), "b_weight", "b", ""}};
}

inline int64_t workspace_bytes(const Call& call) { return fp8_block_linear::workspace_bytes(call, members(call)); }

inline Launches launches(const Call& call) { return fp8_block_linear::launches(call, members(call)); }

}  // namespace deltart::delta_net_projections
