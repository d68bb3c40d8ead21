// launch.py and plugin.py of the gated RMS norm in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../native/launch.hpp"

namespace deltart::gated_rms_norm {

constexpr int64_t BLOCK = 128;  // one warp per head
constexpr int64_t MAX_CHANNELS = 512;

inline int64_t workspace_bytes(const Call&) { return 0; }

inline Launches launches(const Call& call) {
  int64_t head_dim = call.size("D"), heads = call.size("N") / head_dim;
  require(0 < head_dim && head_dim <= MAX_CHANNELS && head_dim % 4 == 0, "heads of " + std::to_string(head_dim),
          "a multiple of 4 up to " + std::to_string(MAX_CHANNELS));
  int64_t rows = call.size("B") * call.size("T") * heads;
  Arguments args;
  args.pointers(call, {"x", "weight"})
      .ints({call.dtype("weight") == DType::bf16})
      .pointers(call, {"z", "y"})
      .ints({rows, head_dim})
      .real(call.real("epsilon"));
  Launch launch{"gated_rms_norm_" + name(call.dtype("x")), {ceil_div(rows, BLOCK / 32), 1, 1}, BLOCK, 0, args};
  return {"kernel.cu", {launch}};
}

}  // namespace deltart::gated_rms_norm
