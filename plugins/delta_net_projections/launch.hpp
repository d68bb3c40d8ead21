// plugin.py of these projections in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include "../fp8_block_linear/projections.hpp"

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
