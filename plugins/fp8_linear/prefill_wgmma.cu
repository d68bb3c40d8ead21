// W8A8 for many tokens on sm_90a: 256 tokens x 128 rows of W per tile, by warpgroup products. README.md.
//
// Two warpgroups multiply, 128 tokens each; a third keeps four stages of both operands on their way. Activations and
// their scales, which the quantizer laid out, come as bulk copies, weights as cp.async in 16-byte pieces that make the
// swizzle. A 128-wide block of K is summed by the tensor cores, 64 tokens at a time, and then scaled into f32 sums:
// while one warpgroup does that, the other one's products run. A block of threads takes tiles until none is left.
#include "../common/warpgroups.cuh"
#include "activations.cuh"
#include "output.cuh"
#include "projections.cuh"

#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace {

constexpr int kStages = 4, kLag = 2;  // kLag: stages whose weights may still be on their way
constexpr int kTokens = kMultipliers * kTile;

struct Stage {
  unsigned char x[kMultipliers][kTileBytes], w[kTileBytes];
  float x_scale[kTokens];
};
struct Memory {
  Stage stage[kStages];
  Barrier full[kStages], empty[kStages];
};
static_assert(sizeof(Stage) % kAtom == 0, "operands start at a swizzle atom");

struct Product {
  const unsigned char* codes;
  const float* x_scale;
  const uint8_t* weight;
  Parameter scale;
  Output out;
  int K, splits;
  int blocks, token_tiles, weight_tiles;
};

// Blocks [first, stop) of K of one tile of y.
struct Work {
  int token_tile, weight_tile, split, first, stop;

  __device__ Work(const Product& in, int item)
      : token_tile(item % in.token_tiles), weight_tile(item / in.token_tiles % in.weight_tiles),
        split(item / in.token_tiles / in.weight_tiles) {
    const int each = (in.blocks + in.splits - 1) / in.splits;
    first = split * each, stop = min(first + each, in.blocks);
  }
  __device__ static int items(const Product& in) { return in.token_tiles * in.weight_tiles * in.splits; }
};

struct Producer {
  const Product& in;
  Memory& memory;
  int thread;

  __device__ void fetch_activations(const Work& work, int block, int stage) {
    Stage& to = memory.stage[stage];
    arrive_expecting(&memory.full[stage], sizeof(to.x) + sizeof(to.x_scale));
#pragma unroll
    for (int i = 0; i < kMultipliers; ++i) {
      const size_t tile = size_t(kMultipliers * work.token_tile + i) * in.blocks + block;
      copy_bulk(to.x[i], in.codes + tile * kTileBytes, kTileBytes, &memory.full[stage]);
    }
    const float* scales = in.x_scale + size_t(block) * in.token_tiles * kTokens + work.token_tile * kTokens;
    copy_bulk(to.x_scale, scales, sizeof(to.x_scale), &memory.full[stage]);
  }

  __device__ void fetch_weights(const Work& work, int block, int stage) {
    const int piece = thread % 8, k = block * kBlock + piece * 16;
#pragma unroll
    for (int i = 0; i < kTile; i += kGroup / 8) {
      const int row = i + thread / 8, at = work.weight_tile * kTile + row;
      const bool is = at < in.out.N && k < in.K;
      copy_async(memory.stage[stage].w + swizzled(row, piece), in.weight + (is ? size_t(at) * in.K + k : 0), is);
    }
    commit_copies();
  }

  __device__ void publish(int step) {
    fence_async();
    arrive(&memory.full[step % kStages]);
  }

  __device__ void run() {
    int step = 0;
    for (int item = blockIdx.x; item < Work::items(in); item += gridDim.x) {
      const Work work(in, item);
      for (int block = work.first; block < work.stop; ++block, ++step) {
        const int stage = step % kStages;
        wait(&memory.empty[stage], step / kStages % 2 ^ 1);
        if (thread == 0) fetch_activations(work, block, stage);
        fetch_weights(work, block, stage);
        wait_copies<kLag>();
        if (step >= kLag) publish(step - kLag);
      }
    }
    wait_copies<0>();
    for (int late = max(step - kLag, 0); late < step; ++late) publish(late);
  }
};

struct Multiplier {
  const Product& in;
  Memory& memory;
  int group, lane, warp, row;  // row: the first of this thread's, in 64 tokens
  float sum[2][64];

  __device__ Multiplier(const Product& in, Memory& memory, int group)
      : in(in), memory(memory), group(group), lane(threadIdx.x % 32), warp(threadIdx.x / 32 % 4), row(16 * warp + lane / 4) {}

  __device__ __forceinline__ void multiply_block(const Work& work, int block, int step) {
    Stage& stage = memory.stage[step % kStages];
    const float w = in.scale[work.weight_tile * in.blocks + block];
    wait(&memory.full[step % kStages], step / kStages % 2);
    const float* x_scale = stage.x_scale + group * kTile + row;
    const float by[2][2] = {{w * x_scale[0], w * x_scale[8]}, {w * x_scale[64], w * x_scale[72]}};
    const uint64_t x = describe(stage.x[group]), weight = describe(stage.w);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float part[64];
      fence_products(part);
#pragma unroll
      for (int k = 0; k < kBlock; k += 32) multiply(part, x + (half * 64 * kBlock + k) / 16, weight + k / 16, k > 0);
      commit_products();
      wait_products<0>(part);
      if (half == 1) {
        __syncwarp();
        if (lane == 0) arrive(&memory.empty[step % kStages]);
      }
#pragma unroll
      for (int i = 0; i < 64; ++i) sum[half][i] = fmaf(by[half][i % 4 / 2], part[i], sum[half][i]);
    }
  }

  __device__ __forceinline__ void write(const Work& work) {
    const int token = work.token_tile * kTokens + group * kTile + row, column = work.weight_tile * kTile + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 64; i += 2)
        in.out.put(work.split, token + half * 64 + i % 4 / 2 * 8, column + i / 4 * 8, sum[half][i], sum[half][i + 1]);
  }

  __device__ void run() {
    int step = 0;
    for (int item = blockIdx.x; item < Work::items(in); item += gridDim.x) {
      const Work work(in, item);
#pragma unroll
      for (int i = 0; i < 128; ++i) sum[i / 64][i % 64] = 0.0f;
      for (int block = work.first; block < work.stop; ++block, ++step) multiply_block(work, block, step);
      write(work);
    }
  }
};

__device__ void run(const Product& in, Memory& memory) {
  init_ring(memory.full, memory.empty, kGroup + 1);
  deal_out([&](int thread) { Producer{in, memory, thread}.run(); }, [&](int group) { Multiplier(in, memory, group).run(); });
}

}  // namespace

#endif

// Grid: any number of blocks. Codes and scales as fp8_block_linear_quantize leaves them.
extern "C" __global__ void __launch_bounds__(384, 1)
    fp8_block_linear_prefill_w8a8_wgmma(const unsigned char* codes, const float* x_scale, const uint8_t* weight,
                                        const void* scale, int bf16_scales, bf16* y, float* partial, int M, int N, int K,
                                        int splits) {
  begin_dependent();
#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  SHARED_MEMORY(memory);
  const Product in = {codes, x_scale, weight, {scale, bf16_scales}, {y, partial, M, N}, K, splits, (K + kBlock - 1) / kBlock,
                      padded_tokens(M) / kTokens, (N + kTile - 1) / kTile};
  run(in, *reinterpret_cast<Memory*>(memory));
#else
  __trap();
#endif
}

EXPORT_KERNEL(fp8_block_linear_prefill_w8a8_wgmma)
QUANTIZE_KERNEL
ADD_SPLITS_KERNEL(fp8_block_linear)
SILU_MUL_KERNEL(fp8_block_linear)
PROJECTIONS_KERNEL(bf16, bf16, 1, 3)
PROJECTIONS_KERNEL(bf16, bf16, 2, 2)
PROJECTIONS_KERNEL(bf16, bf16, 4, 1)
