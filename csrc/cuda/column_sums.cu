// The second step of sums over rows: adds up what the blocks of a backward pass have summed.
//
//   totals[sum][col] = sum over parts of partials[sum][part][col]
//
// A block adds up 32 columns of one sum: warp w takes parts w, w + 8, ..., and its first warp adds
// the eight results. The order is fixed, so the result is the same in every run.
#include "cuda/rows.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kWarps = 8;

struct ColumnSumsArgs {
  const float* partials;
  int64_t parts, cols;
  float *total0, *total1, *total2;  // not an array: an index would bring it into local memory
};

FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kWarps* kWarpSize, 1)
    column_sums_kernel(ColumnSumsArgs args) {
  const int64_t col = int64_t{block_idx().x} * kWarpSize + thread_idx().x % kWarpSize;
  const uint32_t warp = thread_idx().x / kWarpSize, sum = block_idx().y;
  float total = 0.0f;
  if (col < args.cols) {
    const float* parts = args.partials + sum * args.parts * args.cols + col;
    for (int64_t part = warp; part < args.parts; part += kWarps) {
      total += ldg(parts + part * args.cols);
    }
  }
  const uint32_t slot = smem_base() + thread_idx().x * 4;
  sts(slot, total);
  sync_threads();
  if (warp != 0 || col >= args.cols) return;
  total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += lds<float>(slot + w * kWarpSize * 4);
  float* const totals = sum == 0 ? args.total0 : sum == 1 ? args.total1 : args.total2;
  stg(totals + col, total);
}

}  // namespace

void add_partials(const char* op, const ColumnSumsRef& partials, int64_t cols,
                  std::initializer_list<void*> totals, void* stream) {
  float* all[3] = {};
  uint32_t num_sums = 0;
  for (void* total : totals) {
    if (total != nullptr) all[num_sums++] = static_cast<float*>(total);
  }
  const ColumnSumsArgs args{partials.data, partials.parts, cols, all[0], all[1], all[2]};
  const dim3 grid(static_cast<uint32_t>((cols + kWarpSize - 1) / kWarpSize), num_sums);
  run(op, column_sums_kernel, grid, kWarps * kWarpSize, kWarps * kWarpSize * 4, stream, args);
}

}  // namespace fastattn::cuda
