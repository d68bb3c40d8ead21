// The grouped products of many tokens on sm_90a, W8A8: tiles of 128 places times 256 rows of an expert's matrices, by
// warpgroup products. order.cuh has what surrounds them, ../fp8_linear/prefill_wgmma.cu the dense ones.
//
// A warpgroup keeps four stages of operands on their way, cp.async in 16-byte pieces that make the swizzle: 128 of K of
// the places' rows, wherever their tokens are, and of two tiles of 128 rows of W. Two warpgroups multiply, a tile of W each;
// where gate and up are multiplied, that is 64 rows of either, by turns of eight, so that a thread has both of a value. A
// block of K is summed by the tensor cores, 64 places at a time, and then scaled into f32 sums: while one warpgroup does
// that, the other one's products run. Places beyond 64 are left out where a tile has none. A block of threads takes every
// gridDim.x-th tile; those of one expert follow each other.
#include "../common/warpgroups.cuh"
#include "order.cuh"

#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace {

constexpr int kStages = 4, kLag = 2;  // kLag: stages that may still be on their way
constexpr int kTile = 128, kHalf = kTile / 2, kBlock = 128, kTileBytes = kTile * kBlock;

struct Stage {
  unsigned char x[kTileBytes], w[kMultipliers][kTileBytes];
};
struct Memory {
  Stage stage[kStages];
  float x_scale[kStages][kTile];
  Barrier full[kStages], empty[kStages];
};
static_assert(kTileBytes % kAtom == 0, "operands start at a swizzle atom");

struct Product {
  Stored stored;
  Tiles order;
  const unsigned char* codes;  // [rows, stride]
  const float* x_scale;        // [rows, ceil(stride / 128)]
  const float* weight;         // of the places; down's alone
  bf16* out;                   // gate_up: [places, out_stride]; down: [places, H]
  int stride, out_stride, choices, tiles;
};

// What the tile of places of an item is, on its way from memory before it is needed.
struct TilePlaces {
  int slot, first, tokens;
};

// A tile of places times, Gated, 128 rows of gate and of up, or else 256 of down.
template <bool Gated>
struct Work {
  static constexpr int kRows = Gated ? kTile : 2 * kTile;  // of a matrix
  int slot, first, tokens, first_row;
  BlockFp8 upper, lower;

  __device__ static int row_tiles(const Product& in) {
    return ((Gated ? max(in.stored.I, in.stored.shared_width) : in.stored.H) + kRows - 1) / kRows;
  }
  __device__ static int items(const Product& in) { return in.tiles * row_tiles(in); }
  __device__ static TilePlaces ask(const Product& in, int item) {
    const int tile = min(item / row_tiles(in), in.tiles - 1);
    return {in.order.slot[tile], in.order.first[tile], in.order.tokens[tile]};
  }
  __device__ Work(const Product& in, int item, const TilePlaces& places)
      : slot(places.slot), first(places.first), tokens(places.tokens), first_row(item % row_tiles(in) * kRows) {
    if (slot < 0) return;
    upper = matrix<BlockFp8>(in.stored, slot, Gated ? kGate : kDown);
    lower = Gated ? matrix<BlockFp8>(in.stored, slot, kUp) : upper;
  }
  __device__ bool is_there() const { return slot >= 0 && first_row < upper.N; }
  __device__ int blocks() const { return (upper.K + kBlock - 1) / kBlock; }
  // The row of x of a place of the tile.
  __device__ int row(const Product& in, int r) const { return Gated ? in.order.place[first + r] / in.choices : first + r; }
};

// Every tile that is the block's.
template <bool Gated, class F>
__device__ __forceinline__ void each_work(const Product& in, F f) {
  TilePlaces ahead = Work<Gated>::ask(in, blockIdx.x);
  for (int item = blockIdx.x; item < Work<Gated>::items(in); item += gridDim.x) {
    const Work<Gated> work(in, item, ahead);
    ahead = Work<Gated>::ask(in, item + gridDim.x);
    if (work.is_there()) f(work);
  }
}

template <bool Gated>
struct Producer {
  static constexpr int kPieces = kBlock / 16, kAtOnce = kGroup / kPieces, kCopies = kTile / kAtOnce;  // of a tile
  static constexpr int kApart = Gated ? kAtOnce / 2 : kAtOnce;  // rows of a matrix from one copy of a thread to the next
  const Product& in;
  Memory& memory;
  int thread;

  __device__ void publish(int step) {
    fence_async();
    arrive(&memory.full[step % kStages]);
  }

  __device__ void run() {
    const int piece = thread % kPieces, part = thread / kPieces, scales = (in.stride + kBlock - 1) / kBlock;
    int step = 0;
    each_work<Gated>(in, [&](const Work<Gated>& work) {
      // Of the 32 rows of x that a warp copies, lane l holds the one that the warp's `part` l % 4 takes in turn l / 4.
      const int own = thread % 32 / 4 * kAtOnce + thread / 32 * 4 + thread % 4;
      const int own_row = own < work.tokens ? work.row(in, own) : -1;
      const BlockFp8& W = Gated && part >= kApart ? work.lower : work.upper;
      const int K = W.K, first_row = work.first_row + part % kApart, rows = W.N - first_row;  // rows: from there on
      const unsigned char* weight = W.weight + (rows > 0 ? size_t(first_row) * K + piece * 16 : 0);
      for (int block = 0; block < work.blocks(); ++block, ++step) {
        Stage& to = memory.stage[step % kStages];
        const int k = block * kBlock + piece * 16;
        wait(&memory.empty[step % kStages], step / kStages % 2 ^ 1);
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          if (i * kAtOnce >= work.tokens) break;
          const int row = __shfl_sync(kFullWarp, own_row, i * 4 + part % 4);
          const bool is = row >= 0 && k < K;
          copy_async(to.x + swizzled(i * kAtOnce + part, piece), in.codes + (is ? size_t(row) * in.stride + k : 0), is);
        }
        const bool is_own = own_row >= 0;
        copy_word_async(memory.x_scale[step % kStages] + own,
                        in.x_scale + (is_own ? size_t(own_row) * scales + block : 0), is_own ? 4 : 0);
#pragma unroll 1
        for (int group = 0; group < kMultipliers; ++group)
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            const int at = (group * kCopies + i) * kApart;
            const bool is = at < rows && k < K;
            copy_async(to.w[group] + swizzled(i * kAtOnce + part, piece),
                       weight + (is ? size_t(at) * K + block * kBlock : 0), is);
          }
        commit_copies();
        wait_copies<kLag>();
        if (step >= kLag) publish(step - kLag);
      }
    });
    wait_copies<0>();
    for (int late = max(step - kLag, 0); late < step; ++late) publish(late);
  }
};

template <bool Gated>
struct Multiplier {
  static constexpr int kRows = Work<Gated>::kRows / kMultipliers;  // of a matrix
  const Product& in;
  Memory& memory;
  int group, lane, row;  // row: the first of this thread's, in 64 places
  float sum[2][64];

  __device__ Multiplier(const Product& in, Memory& memory, int group)
      : in(in), memory(memory), group(group), lane(threadIdx.x % 32), row(threadIdx.x / 32 % 4 * 16 + lane / 4) {}

  // Of both matrices.
  __device__ __forceinline__ float2 scale(const Work<Gated>& work, int block) const {
    const int first = min(work.first_row + group * kRows, work.upper.N - 1);
    const float upper = work.upper.scale_of(first, block);
    return {upper, Gated ? work.lower.scale_of(first, block) : upper};
  }

  __device__ __forceinline__ void multiply_block(const Work<Gated>& work, const float2& w, int step) {
    Stage& stage = memory.stage[step % kStages];
    const float* x_scale = memory.x_scale[step % kStages] + row;
    wait(&memory.full[step % kStages], step / kStages % 2);
    const uint64_t x = describe(stage.x), weight = describe(stage.w[group]);
    const int halves = work.tokens > kHalf ? 2 : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == halves) break;
      float part[64];
      fence_products(part);
#pragma unroll
      for (int k = 0; k < kBlock; k += 32) multiply(part, x + (half * kHalf * kBlock + k) / 16, weight + k / 16, k > 0);
      commit_products();
      const float top = x_scale[half * kHalf], bottom = x_scale[half * kHalf + 8];
      const float by[2][2] = {{w.x * top, w.x * bottom}, {w.y * top, w.y * bottom}};
      wait_products<0>(part);
      if (half + 1 == halves) {
        __syncwarp();
        if (lane == 0) arrive(&memory.empty[step % kStages]);
      }
#pragma unroll
      for (int i = 0; i < 64; ++i)
        sum[half][i] = fmaf(by[Gated ? i / 4 % 2 : 0][i % 4 / 2], part[i], sum[half][i]);
    }
  }

  __device__ __forceinline__ void write(const Work<Gated>& work) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int token = half * kHalf + row + side * 8, at = work.first + token;
        if (token >= work.tokens) continue;
        const float by = Gated ? 1.0f : in.weight[in.order.place[at]];
        bf16* to = in.out + size_t(at) * in.out_stride;
        int column = work.first_row + group * kRows + lane % 4 * 2;
#pragma unroll
        for (int i = 2 * side; i < 64; i += Gated ? 8 : 4, column += 8) {
          if (column >= work.upper.N) break;
          const float first = sum[half][i], second = sum[half][i + 1];
          if constexpr (Gated)
            put(to + column, first * sigmoid_for<bf16>(first) * sum[half][i + 4],
                second * sigmoid_for<bf16>(second) * sum[half][i + 5]);
          else
            put(to + column, by * first, by * second);
        }
      }
  }

  __device__ void run() {
    int step = 0;
    each_work<Gated>(in, [&](const Work<Gated>& work) {
#pragma unroll
      for (int i = 0; i < 128; ++i) sum[i / 64][i % 64] = 0.0f;
      float2 next = scale(work, 0);
      for (int block = 0; block < work.blocks(); ++block, ++step) {
        const float2 w = next;
        next = scale(work, min(block + 1, work.blocks() - 1));  // on its way during the products
        multiply_block(work, w, step);
      }
      write(work);
    });
  }
};

template <bool Gated>
__device__ void run(const Product& in, Memory& memory) {
  init_ring(memory.full, memory.empty, kGroup);
  deal_out([&](int thread) { Producer<Gated>{in, memory, thread}.run(); },
           [&](int group) { Multiplier<Gated>(in, memory, group).run(); });
}

}  // namespace

#endif

// Grid: any number of blocks. Codes and scales as moe_experts_quantize leaves them, tiles of at most 128 places.
extern "C" __global__ void __launch_bounds__(384, 1)
    moe_experts_group_gate_up_wgmma(const unsigned char* codes, const float* x_scale, ORDER_ARGUMENTS, bf16* h,
                                    STORED_ARGUMENTS, int choices, int stride, int tiles) {
  begin_dependent();
#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  SHARED_MEMORY(memory);
  const Tiles order = {place, tile_slot, tile_first, tile_tokens};
  const Product in = {STORED, order, codes, x_scale, nullptr, h, H, stride, choices, tiles};
  run<true>(in, *reinterpret_cast<Memory*>(memory));
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1)
    moe_experts_group_down_wgmma(const unsigned char* codes, const float* x_scale, const float* weight, ORDER_ARGUMENTS,
                                 bf16* rows, STORED_ARGUMENTS, int stride, int tiles) {
  begin_dependent();
#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  SHARED_MEMORY(memory);
  const Tiles order = {place, tile_slot, tile_first, tile_tokens};
  const Product in = {STORED, order, codes, x_scale, weight, rows, stride, H, 1, tiles};
  run<false>(in, *reinterpret_cast<Memory*>(memory));
#else
  __trap();
#endif
}

EXPORT_KERNEL(moe_experts_group_gate_up_wgmma)
EXPORT_KERNEL(moe_experts_group_down_wgmma)
