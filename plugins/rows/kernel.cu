// Rows that are moved as they are, in pieces of 16 bytes. README.md has the contracts.
// Grid (rows of y, ceil(pieces of a row / threads)).
#include "../common/cuda.cuh"

namespace {

constexpr int kThreads = 256;
constexpr unsigned kNan = 0x7fc07fc0;  // in bf16 twice, in f32 once

__device__ __forceinline__ int piece() { return blockIdx.y * kThreads + threadIdx.x; }

}  // namespace

// y[r] = the source's row index[r], of the group that r lies in where `picked` rows are taken of each.
extern "C" __global__ void __launch_bounds__(kThreads)
    take_rows(const uint4* source, const long long* index, uint4* y, int picked, int limit, int pieces) {
  begin_dependent();
  const int row = blockIdx.x, at = piece();
  if (at >= pieces) return;
  const size_t group = picked ? row / picked : 0;
  long long wanted = index[row];
  if (wanted < 0) wanted += limit;
  uint4 value = {kNan, kNan, kNan, kNan};
  if (wanted >= 0 && wanted < limit) value = source[(group * limit + wanted) * pieces + at];
  y[size_t(row) * pieces + at] = value;
}
EXPORT_KERNEL(take_rows)

extern "C" __global__ void __launch_bounds__(kThreads)
    concat_rows(const uint4* first, const uint4* second, uint4* y, int first_pieces, int second_pieces) {
  begin_dependent();
  const size_t row = blockIdx.x;
  const int at = piece(), pieces = first_pieces + second_pieces;
  if (at >= pieces) return;
  y[row * pieces + at] =
      at < first_pieces ? first[row * first_pieces + at] : second[row * second_pieces + at - first_pieces];
}
EXPORT_KERNEL(concat_rows)
