// launch.py and plugin.py of the gated pair of linears in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../fp8_block_linear/launch.hpp"

namespace deltart::fp8_block_gate_up {

namespace linear = fp8_block_linear;

constexpr int64_t SHARE = 8 * 256;  // values of y per block of the last launch

inline linear::Shape shape_of(const Call& call) {
  std::string first = name(call.dtype("weight_scale_inv")), second = name(call.dtype("up_weight_scale_inv"));
  require(first == second, "scales stored as " + first + " and " + second, "one type for both");
  return linear::shape_of(call);
}

// Whether one launch computes both products: few tokens, activations as they are.
inline bool is_fused(const Call& call) {
  linear::Shape shape = shape_of(call);
  return !linear::is_quantized(call) && (shape.rows <= linear::MOST_DECODE || shape.dtype == DType::f32);
}

// What a linear takes, and the gate; nothing for few tokens.
inline int64_t workspace_bytes(const Call& call) {
  linear::Shape shape = shape_of(call);
  return is_fused(call) ? 0 : linear::workspace_bytes(call) + 2 * shape.rows * shape.n;
}

// Few tokens take one launch, prompts the tile kernel twice and a product.
inline Launches launches(const Call& call) {
  linear::Shape shape = shape_of(call);
  Names gate = {"weight", "weight_scale_inv"}, up = {"up_weight", "up_weight_scale_inv"};
  Names both = {"weight", "weight_scale_inv", "up_weight", "up_weight_scale_inv"};
  if (is_fused(call)) return {"decode.cu", {linear::decode("fp8_block_linear_gate_up", call, shape, both)}};
  linear::Scratch scratch = linear::scratch(call);
  Call with = scratch.added_to(call);
  with.at["gate"] = call.address("workspace") + scratch.bytes;
  bool quantized = linear::is_quantized(call);
  const linear::TileKernel& kernel = quantized ? linear::w8a8_kernel(call) : linear::W8A16;
  std::vector<Launch> list = quantized ? linear::prefill_w8a8(with, shape, kernel, gate, "gate")
                                       : linear::prefill(with, shape, kernel, gate, "gate");
  for (Launch& launch : linear::prefill(with, shape, kernel, up, "y")) list.push_back(launch);
  int64_t count = shape.rows * shape.n;
  Arguments args;
  args.pointers(with, {"gate", "y"}).count(count);
  list.push_back({"fp8_block_linear_silu_mul", {ceil_div(count, SHARE), 1, 1}, 256, 0, args});
  return {kernel.source, list};
}

}  // namespace deltart::fp8_block_gate_up
