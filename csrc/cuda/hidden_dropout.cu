// out = keep_scale * keep * x for hidden states; its own gradient, with dout in the place of x.
//
// A warp takes blocks of 256 columns of a row, one after the other.
#include "cuda/hidden.h"
#include "cuda/rows.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kMaxBlocks = 1 << 16;  // a grid; what is left over is taken by the same warps

struct DropoutArgs {
  MatrixRef x, out;
  int64_t rows, cols;
  RowDropout dropout;
};

template <class T, bool kPaired>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kWarps* kWarpSize, 1)
    hidden_dropout_kernel(DropoutArgs args) {
  const int64_t col_blocks = (args.cols + kBlockCols - 1) / kBlockCols;
  const int64_t warp = int64_t{block_idx().x} * kWarps + thread_idx().x / kWarpSize;
  const int64_t num_warps = int64_t{grid_dim().x} * kWarps;
  for (int64_t unit = warp; unit < args.rows * col_blocks; unit += num_warps) {
    const int64_t row = unit / col_blocks, block = unit % col_blocks;
    const LaneCols<kPaired> cols(block * kBlockCols, args.cols);
    LaneRow h = cols.load(row_of<const T>(args.x, row));
    args.dropout.apply(h, row, block);
    cols.store(row_of<T>(args.out, row), h);
  }
}

}  // namespace

void hidden_dropout(const HiddenDropoutParams& params, void* stream) {
  if (params.rows == 0) return;
  const DropoutArgs args{params.x, params.out, params.rows, params.hidden_size,
                         RowDropout::of(params)};
  const int64_t units = args.rows * ((args.cols + kBlockCols - 1) / kBlockCols);
  const int64_t blocks = (units + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<uint32_t>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
  dispatch_hidden(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool paired = is_paired<T>(args.x, args.cols) && is_paired<T>(args.out, args.cols);
    dispatch_bool(paired, [&](auto is_paired) {
      run("dropout", hidden_dropout_kernel<T, decltype(is_paired)::value>, grid, kWarps * kWarpSize,
          0, stream, args);
    });
  });
}

}  // namespace fastattn::cuda
