// plugin.py of these projections in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../fp8_block_linear/projections.hpp"

namespace deltart::attention_projections {

inline fp8_block_linear::Members members(const Call& call) {
  return {{call.size("Nq"), "q_weight", "q", "q_scale_inv"},
          {call.size("Nk"), "k_weight", "k", "k_scale_inv"},
          {call.size("Nv"), "v_weight", "v", "v_scale_inv"}};
}

inline int64_t workspace_bytes(const Call& call) { return fp8_block_linear::workspace_bytes(call, members(call)); }

inline Launches launches(const Call& call) { return fp8_block_linear::launches(call, members(call)); }

}  // namespace deltart::attention_projections
