// The ops of the library: a launch.hpp beside each launch.py, and a row here.
#pragma once
#include "../causal_conv1d/launch.hpp"
#include "../fp8_linear/launch.hpp"
#include "../gated_attention/launch.hpp"
#include "../gated_delta_rule/launch.hpp"
#include "../gated_rms_norm/launch.hpp"
#include "../int4_linear/launch.hpp"
#include "../lm_head/launch.hpp"
#include "../moe_experts/launch.hpp"
#include "../qk_norm_rope/launch.hpp"

namespace deltart {

// How an op runs. `workspace_bytes` is enough for this call and any smaller one, on any GPU.
struct Operator {
  const char* name;
  int64_t (*workspace_bytes)(const Call&);
  Launches (*launches)(const Call&);
};

constexpr Operator OPERATORS[] = {
    {"AttentionProjections", attention_projections::workspace_bytes, attention_projections::launches},
    {"CausalConv1d", causal_conv1d::workspace_bytes, causal_conv1d::launches},
    {"DeltaNetProjections", delta_net_projections::workspace_bytes, delta_net_projections::launches},
    {"Fp8BlockGateUp", fp8_block_gate_up::workspace_bytes, fp8_block_gate_up::launches},
    {"Fp8BlockLinear", fp8_block_linear::workspace_bytes, fp8_block_linear::launches},
    {"GatedAttention", gated_attention::workspace_bytes, gated_attention::launches},
    {"GatedDeltaRule", gated_delta_rule::workspace_bytes, gated_delta_rule::launches},
    {"Fp8MoeExperts", moe_experts::workspace_bytes, moe_experts::launches},
    {"Fp8SparseMoe", moe_experts::workspace_bytes, moe_experts::launches},
    {"GatedRMSNorm", gated_rms_norm::workspace_bytes, gated_rms_norm::launches},
    {"Int4AttentionProjections", int4_attention_projections::workspace_bytes, int4_attention_projections::launches},
    {"Int4DeltaNetProjections", int4_delta_net_projections::workspace_bytes, int4_delta_net_projections::launches},
    {"Int4GroupGateUp", int4_group_gate_up::workspace_bytes, int4_group_gate_up::launches},
    {"Int4GroupLinear", int4_group_linear::workspace_bytes, int4_group_linear::launches},
    {"Int4LmHead", int4_lm_head::workspace_bytes, int4_lm_head::launches},
    {"LmHead", lm_head::workspace_bytes, lm_head::launches},
    {"MoeExperts", moe_experts::workspace_bytes, moe_experts::launches},
    {"QkNormRope", qk_norm_rope::workspace_bytes, qk_norm_rope::launches},
    {"SparseMoe", moe_experts::workspace_bytes, moe_experts::launches},
};

inline const Operator& operator_of(const std::string& name) {
  for (const Operator& known : OPERATORS)
    if (name == known.name) return known;
  throw Error(name + " has no row in plugins/native/operators.hpp", "one for every op of the contract");
}

}  // namespace deltart
