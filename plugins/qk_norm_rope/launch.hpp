// launch.py and plugin.py of the turned q and k in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../native/launch.hpp"

namespace deltart::qk_norm_rope {

constexpr int64_t BLOCK = 128;  // one warp per head
constexpr int64_t MAX_CHANNELS = 256;

inline int64_t workspace_bytes(const Call&) { return 0; }

inline Launches launches(const Call& call) {
  std::string first = name(call.dtype("q_weight")), second = name(call.dtype("k_weight"));
  require(first == second, "norm weights stored as " + first + " and " + second, "one type for both");
  int64_t head_dim = call.size("head_dim"), turned = 2 * call.size("P");
  require(0 < head_dim && head_dim <= MAX_CHANNELS && head_dim % 8 == 0, "heads of " + std::to_string(head_dim),
          "a multiple of 8 up to " + std::to_string(MAX_CHANNELS));
  require(0 < turned && turned <= head_dim && turned % 16 == 0, std::to_string(turned) + " rotary dimensions",
          "a multiple of 16");
  int64_t rows = call.size("B") * call.size("T"), heads = call.size("num_heads"), kv_heads = call.size("num_kv_heads");
  Arguments args;
  args.pointers(call, {"q_gate", "k", "q_weight", "k_weight"})
      .ints({call.dtype("q_weight") == DType::bf16})
      .pointers(call, {"cos", "sin", "q", "k_out", "gate"})
      .ints({rows, heads, kv_heads, head_dim, turned})
      .real(call.real("epsilon"));
  int64_t warps = rows * (heads + kv_heads);
  Launch launch{"qk_norm_rope_" + name(call.dtype("q_gate")), {ceil_div(warps, BLOCK / 32), 1, 1}, BLOCK, 0, args};
  return {"kernel.cu", {launch}};
}

}  // namespace deltart::qk_norm_rope
