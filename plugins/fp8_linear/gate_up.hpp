// gate_up.py and plugin.py of the gated pair of linears in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "linear.hpp"

namespace deltart::fp8_block_gate_up {

namespace linear = fp8_block_linear;

constexpr int64_t SHARE = 8 * 256;  // values of y per block of the last launch

inline linear::Shape shape_of(const Call& call) {
  std::string first = name(call.dtype("weight_scale_inv")), second = name(call.dtype("up_weight_scale_inv"));
  require(first == second, "scales stored as " + first + " and " + second, "one type for both");
  return linear::shape_of(call);
}

// What a linear takes, and the gate; nothing in decode.
inline int64_t workspace_bytes(const Call& call) {
  linear::Shape shape = shape_of(call);
  return linear::needs_scratch(call, shape) ? linear::scratch(call, shape).bytes + 2 * shape.rows * shape.n : 0;
}

// Decode takes one launch, a prompt the tile kernel twice and a product.
inline Launches launches(const Call& call) {
  linear::Shape shape = shape_of(call);
  Names gate = {"weight", "weight_scale_inv"}, up = {"up_weight", "up_weight_scale_inv"};
  Names both = {"weight", "weight_scale_inv", "up_weight", "up_weight_scale_inv"};
  if (linear::is_decode(call, shape))
    return {"decode.cu", {linear::decode("fp8_block_linear_gate_up", call, shape, both)}};
  linear::Scratch scratch = linear::scratch(call, shape);
  Call with = scratch.added_to(call);
  with.at["gate"] = call.address("workspace") + scratch.bytes;
  const linear::TileKernel& kernel = linear::tile_kernel(call);
  auto first = linear::is_quantized(call) ? linear::prefill_w8a8 : linear::prefill;  // the second takes the same codes
  std::vector<Launch> list = first(with, shape, kernel, gate, "gate");
  for (Launch& launch : linear::prefill(with, shape, kernel, up, "y")) list.push_back(launch);
  int64_t count = shape.rows * shape.n;
  Arguments args;
  args.pointers(with, {"gate", "y"}).count(count);
  list.push_back({"fp8_block_linear_silu_mul", {ceil_div(count, SHARE), 1, 1}, 256, 0, args});
  return {kernel.source, list};
}

}  // namespace deltart::fp8_block_gate_up
