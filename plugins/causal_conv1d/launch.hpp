// launch.py and plugin.py of the causal conv1d in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>

#include "../native/launch.hpp"

namespace deltart::causal_conv1d {

constexpr int64_t BLOCK = 64;
constexpr int64_t RUN = 16;  // tokens per thread at prefill: three extra rows are read per run

inline int64_t workspace_bytes(const Call&) { return 0; }

inline Launches launches(const Call& call) {
  int64_t slots = call.size("B"), tokens = call.size("T"), channels = call.size("C");
  DType dtype = call.dtype("x");
  int64_t lane = 16 / (dtype == DType::bf16 ? 2 : 4), run = std::min(RUN, tokens);
  require(tokens > 0, "no tokens", "at least one");
  require(channels % lane == 0, std::to_string(channels) + " channels",
          "a multiple of " + std::to_string(lane) + " for " + name(dtype));
  Arguments args;
  args.pointers(call, {"x", "weight"})
      .ints({call.dtype("weight") == DType::bf16})
      .pointers(call, {"state", "n_commit", "y"})
      .ints({tokens, channels, run});
  Launch launch{"causal_conv1d_" + name(dtype),
                {ceil_div(channels, lane * BLOCK), ceil_div(tokens, run), slots}, BLOCK, 0, args};
  return {"kernel.cu", {launch}};
}

}  // namespace deltart::causal_conv1d
