// launch.py and plugin.py of the gated delta rule in C++; tests/plugins/test_native_launches.py holds them equal.
#pragma once
#include <algorithm>

#include "../native/launch.hpp"

namespace deltart::gated_delta_rule {

constexpr int64_t DECODE_TOKENS = 8;  // at most; beyond it the chunked kernels take over
constexpr int64_t KEY_DIM = 128;      // of the kernels as they are compiled for GPUs
constexpr int64_t SEGMENT = 2048;     // tokens of all slots per pass
constexpr int64_t ANY_SHARED = 1 << 30;  // bytes: leaves the choice of chunk open

struct Shape {
  int64_t slots, tokens, key_heads, value_heads, key_dim, value_dim;
  DType dtype, A_log_dtype, dt_bias_dtype;
};

inline Shape shape_of(const Call& call) {
  require(call.size("head_k_dim") == KEY_DIM, "key heads of " + std::to_string(call.size("head_k_dim")),
          std::to_string(KEY_DIM));
  return {call.size("B"), call.size("T"), call.size("num_k_heads"), call.size("num_v_heads"),
          call.size("head_k_dim"), call.size("head_v_dim"), call.dtype("qkv"), call.dtype("A_log"),
          call.dtype("dt_bias")};
}

inline Arguments operands(const Call& call, const Shape& shape) {
  Arguments args;
  args.pointers(call, {"qkv", "a", "b", "A_log", "dt_bias"})
      .ints({shape.A_log_dtype == DType::bf16, shape.dt_bias_dtype == DType::bf16});
  return args;
}

inline Launch decode(const Call& call, const Shape& shape) {
  require(1 <= shape.tokens && shape.tokens <= DECODE_TOKENS, std::to_string(shape.tokens) + " tokens",
          "1 to " + std::to_string(DECODE_TOKENS) + " for gated_delta_rule_decode");
  require(shape.value_dim % 8 == 0, "value heads of " + std::to_string(shape.value_dim), "a multiple of 8");
  int64_t tile = shape.value_dim % 16 == 0 ? 16 : 8, limit = shape.slots * shape.value_heads < 256 ? 1 : 4, warps = 1;
  for (int64_t w : {2, 4})
    if (w <= limit && shape.value_dim % (tile * w) == 0) warps = w;
  int64_t columns = tile * warps;
  Arguments args = operands(call, shape)
                       .pointers(call, {"S", "n_tokens", "n_commit", "o"})
                       .ints({shape.tokens, shape.key_heads, shape.value_heads, shape.value_dim});
  return {"gated_delta_rule_decode_" + name(shape.dtype) + "_w" + std::to_string(tile),
          {shape.value_dim / columns, shape.value_heads, shape.slots}, 32 * warps,
          4 * shape.tokens * (2 * shape.key_dim + columns + 4), args};
}

// How prefill cuts a shape up: tokens per chunk (32 or 64), per segment, and warps per scan block.
struct Chunking {
  Shape shape;
  int64_t chunk, segment, warps;

  int64_t inputs() const { return shape.dtype == DType::bf16 ? 1 : 3; }    // planes of q, k and v
  int64_t matrices() const { return shape.dtype == DType::bf16 ? 4 : 6; }  // planes of T' and A together

  int64_t workspace_bytes() const {
    int64_t each = matrices() * chunk * chunk * 2 + 16 * chunk;
    return shape.slots * ceil_div(std::min(segment, shape.tokens), chunk) * shape.value_heads * each;
  }

  int64_t chunk_shared_bytes() const {
    int64_t keys = 2 * inputs() * chunk * (shape.key_dim + 8) * 2;
    int64_t scales = chunk * (2 + 3 * shape.value_heads / shape.key_heads) * 4;
    return scales + std::max(keys, 2 * chunk * (chunk + 4) * 4);
  }

  int64_t scan_shared_bytes() const {
    int64_t keys = 2 * inputs() * (shape.key_dim + 8), values = inputs() * (16 * warps + 8);
    int64_t stage = chunk * (2 * (keys + values + matrices() * (chunk + 8)) + 16);
    return stage * (shape.dtype == DType::bf16 ? 2 : 1);
  }
};

inline std::vector<int64_t> chunks(DType dtype) {  // compiled for GPUs, the preferred one first
  return dtype == DType::bf16 ? std::vector<int64_t>{64, 32} : std::vector<int64_t>{32};
}

// The first of `sizes` whose tiles fit in `shared_limit` bytes.
inline Chunking chunking(const Shape& shape, int64_t shared_limit, const std::vector<int64_t>& sizes) {
  require(shape.value_dim % 16 == 0, "value heads of " + std::to_string(shape.value_dim), "a multiple of 16");
  require(shape.value_heads % shape.key_heads == 0, std::to_string(shape.value_heads) + " value heads",
          "a multiple of the " + std::to_string(shape.key_heads) + " key heads");
  int64_t warps = shape.value_dim % 64 == 0 ? 4 : shape.value_dim % 32 == 0 ? 2 : 1;
  Chunking by{};
  for (int64_t chunk : sizes) {
    by = {shape, chunk, std::max(chunk, SEGMENT / shape.slots / chunk * chunk), warps};
    if (std::max(by.scan_shared_bytes(), by.chunk_shared_bytes()) <= shared_limit) return by;
  }
  require(false, std::to_string(by.scan_shared_bytes()) + " bytes of shared memory",
          "at most " + std::to_string(shared_limit));
  return by;
}

inline std::vector<Launch> prefill(const Call& call, const Chunking& by) {
  const Shape& shape = by.shape;
  std::string suffix = name(shape.dtype) + "_c" + std::to_string(by.chunk);
  std::vector<Launch> list;
  for (int64_t first = 0; first < shape.tokens; first += by.segment) {
    int64_t count = std::min(by.segment, shape.tokens - first);
    Arguments args = operands(call, shape)
                         .pointers(call, {"S", "n_tokens", "o", "workspace"})
                         .ints({shape.tokens, first, count, shape.key_heads, shape.value_heads, shape.value_dim});
    list.push_back({"gated_delta_rule_prefill_chunk_" + suffix,
                    {ceil_div(count, by.chunk), shape.key_heads, shape.slots}, 2 * by.chunk,
                    by.chunk_shared_bytes(), args});
    list.push_back({"gated_delta_rule_prefill_scan_" + suffix,
                    {shape.value_dim / (16 * by.warps), shape.value_heads, shape.slots}, 32 * by.warps,
                    by.scan_shared_bytes(), args});
  }
  return list;
}

// Scratch memory of prefill, whichever chunk the device allows; decode needs none.
inline int64_t workspace_bytes(const Call& call) {
  Shape shape = shape_of(call);
  int64_t largest = 0;
  if (shape.tokens > DECODE_TOKENS)
    for (int64_t chunk : chunks(shape.dtype))
      largest = std::max(largest, chunking(shape, ANY_SHARED, {chunk}).workspace_bytes());
  return largest;
}

inline Launches launches(const Call& call) {
  Shape shape = shape_of(call);
  if (shape.tokens <= DECODE_TOKENS) return {"decode.cu", {decode(call, shape)}};
  return {"prefill.cu", prefill(call, chunking(shape, call.shared_limit, chunks(shape.dtype)))};
}

}  // namespace deltart::gated_delta_rule
