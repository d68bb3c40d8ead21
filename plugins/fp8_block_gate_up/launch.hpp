// plugin.py of the gated pair of block-FP8 linears in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../fp8_block_linear/launch.hpp"

namespace deltart::fp8_block_gate_up {

using fp8_block_linear::MOST_DECODE;
using fp8_block_linear::Shape;

constexpr int64_t PRODUCT_BLOCK = 256;  // threads, of eight elements each

inline Shape shape_of(const Call& call) {
  std::string first = name(call.dtype("weight_scale_inv")), second = name(call.dtype("up_weight_scale_inv"));
  require(first == second, "scales stored as " + first + " and " + second, "one type for both");
  return fp8_block_linear::shape_of(call);
}

// The gate of a prompt; none for few tokens.
inline int64_t workspace_bytes(const Call& call) {
  Shape shape = shape_of(call);
  return shape.rows > MOST_DECODE ? 2 * shape.rows * shape.n : 0;
}

// Few tokens take one launch, prompts the tile kernel twice and a product.
inline Launches launches(const Call& call) {
  Shape shape = shape_of(call);
  Names gate = {"weight", "weight_scale_inv"}, up = {"up_weight", "up_weight_scale_inv"};
  Names both = {"weight", "weight_scale_inv", "up_weight", "up_weight_scale_inv"};
  if (shape.rows <= MOST_DECODE || shape.dtype == DType::f32)
    return {"decode.cu", {fp8_block_linear::decode("fp8_block_linear_gate_up", call, shape, both)}};
  int64_t count = shape.rows * shape.n;
  Arguments args;
  args.pointers(call, {"workspace", "y"}).count(count);
  Launch product{"fp8_block_linear_silu_mul", {ceil_div(count, 8 * PRODUCT_BLOCK), 1, 1}, PRODUCT_BLOCK, 0, args};
  return {"prefill.cu",
          {fp8_block_linear::prefill(call, shape, gate, "workspace"),
           fp8_block_linear::prefill(call, shape, up, "y"), product}};
}

}  // namespace deltart::fp8_block_gate_up
