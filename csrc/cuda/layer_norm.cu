// Dropout, residual and LayerNorm in one pass over memory, forward and backward.
//
//   s    = residual + keep_scale * keep * (x + x_bias)
//   mean = sum(s) / hidden_size;  rstd = 1 / sqrt(sum((s - mean)^2) / hidden_size + eps)
//   xhat = (s - mean) * rstd
//   out  = xhat * weight + bias
//
//   g         = dout * weight
//   dresidual = (g - sum(g) / hidden_size - xhat * sum(g * xhat) / hidden_size) * rstd
//   dx        = keep_scale * keep * dresidual
//   dweight, dbias, dx_bias = sums over rows of dout * xhat, dout, dx
//
// A block of threads takes a row at a time and holds it in registers, two blocks of 256 columns a
// warp. In the backward pass each block takes some rows, sums over them as it goes, and leaves one
// partial sum of each kind. s is made again from x, residual and the dropout rule.
#include <cmath>

#include "cuda/hidden.h"
#include "cuda/rows.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kWarpBlocks = 2;  // blocks of columns of a warp
constexpr int kWarpCols = kWarpBlocks * kBlockCols;
constexpr int kMaxWarps = 12;  // with more, a thread has too few registers for its sums
constexpr int64_t kMaxGrid = 0x7FFFFFFF;

struct NormArgs {
  MatrixRef x, residual, out;
  MatrixRef dout, dresidual, dx;  // dx.data may be null
  const float *x_bias, *weight, *bias;
  float *mean, *rstd;
  float* partials;
  int64_t rows, cols, parts;
  float eps;
  bool with_dx_bias;
  RowDropout dropout;
};

template <class T>
__device__ __forceinline__ T* part_of(T* partials, const NormArgs& args, int sum) {
  return partials + (sum * args.parts + block_idx().x) * args.cols;
}

// The columns of a thread: parts of kWarpBlocks blocks of columns.
template <class X, class Residual, bool kPaired>
class NormRow {
 public:
  using Cols = LaneCols<kPaired>;

  __device__ __forceinline__ explicit NormRow(const NormArgs& args)
      : args_(args), first_block_(int64_t{thread_idx().x / kWarpSize} * kWarpBlocks) {}

  __device__ __forceinline__ Cols cols(int b) const {
    return Cols((first_block_ + b) * kBlockCols, args_.cols);
  }

  // s of a block of columns.
  __device__ __forceinline__ LaneRow sum(int64_t row, int b) const {
    const Cols cols = this->cols(b);
    LaneRow s = cols.load(row_of<const X>(args_.x, row));
    if (args_.x_bias != nullptr) add(s, cols.load(args_.x_bias));
    args_.dropout.apply(s, row, first_block_ + b);
    add(s, cols.load(row_of<const Residual>(args_.residual, row)));
    return s;
  }

  __device__ __forceinline__ int64_t block(int b) const { return first_block_ + b; }

 private:
  __device__ __forceinline__ static void add(LaneRow& to, const LaneRow& what) {
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) to.v[i] += what.v[i];
  }

  const NormArgs& args_;
  const int64_t first_block_;
};

template <class X, class Residual, bool kPaired>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kMaxWarps* kWarpSize, 1)
    layer_norm_fwd_kernel(NormArgs args) {
  const NormRow<X, Residual, kPaired> part(args);
  const float inverse_cols = 1.0f / static_cast<float>(args.cols);
  for (int64_t row = block_idx().x; row < args.rows; row += grid_dim().x) {
    LaneRow s[kWarpBlocks];
    float total[1] = {0.0f};
    FASTATTN_UNROLL
    for (int b = 0; b < kWarpBlocks; ++b) {
      s[b] = part.sum(row, b);
      FASTATTN_UNROLL
      for (int i = 0; i < kLaneCols; ++i) total[0] += s[b].v[i];
    }
    block_sum(total);
    const float mean = total[0] * inverse_cols;
    float squares[1] = {0.0f};
    FASTATTN_UNROLL
    for (int b = 0; b < kWarpBlocks; ++b) {
      const auto cols = part.cols(b);
      FASTATTN_UNROLL
      for (int i = 0; i < kLaneCols; ++i) {
        s[b].v[i] -= mean;
        if (cols.has(i)) squares[0] += s[b].v[i] * s[b].v[i];
      }
    }
    block_sum(squares);
    const float rstd = 1.0f / sqrtf(squares[0] * inverse_cols + args.eps);
    FASTATTN_UNROLL
    for (int b = 0; b < kWarpBlocks; ++b) {
      const auto cols = part.cols(b);
      const LaneRow weight = cols.load(args.weight), bias = cols.load(args.bias);
      FASTATTN_UNROLL
      for (int i = 0; i < kLaneCols; ++i) {
        s[b].v[i] = s[b].v[i] * rstd * weight.v[i] + bias.v[i];
      }
      cols.store(row_of<Residual>(args.out, row), s[b]);
    }
    if (thread_idx().x == 0) {
      stg(args.mean + row, mean);
      stg(args.rstd + row, rstd);
    }
  }
}

// The sums over the rows of a block of threads.
struct NormSums {
  LaneRow dweight[kWarpBlocks], dbias[kWarpBlocks], dx_bias[kWarpBlocks];
};

// One row of the backward pass.
template <class X, class Residual, bool kPaired>
__device__ __forceinline__ void backward_row(const NormArgs& args,
                                             const NormRow<X, Residual, kPaired>& part, int64_t row,
                                             NormSums& sums) {
  const float mean = ldg(args.mean + row), rstd = ldg(args.rstd + row);
  LaneRow xhat[kWarpBlocks], g[kWarpBlocks];
  float totals[2] = {0.0f, 0.0f};  // of g and g * xhat
  FASTATTN_UNROLL
  for (int b = 0; b < kWarpBlocks; ++b) {
    const auto cols = part.cols(b);
    xhat[b] = part.sum(row, b);
    g[b] = cols.load(row_of<const Residual>(args.dout, row));
    const LaneRow weight = cols.load(args.weight);
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) {
      xhat[b].v[i] = (xhat[b].v[i] - mean) * rstd;
      sums.dweight[b].v[i] += g[b].v[i] * xhat[b].v[i];
      sums.dbias[b].v[i] += g[b].v[i];
      g[b].v[i] *= weight.v[i];
      totals[0] += g[b].v[i];
      totals[1] += g[b].v[i] * xhat[b].v[i];
    }
  }
  block_sum(totals);
  const float inverse_cols = 1.0f / static_cast<float>(args.cols);
  const float mean_g = totals[0] * inverse_cols, mean_g_xhat = totals[1] * inverse_cols;
  FASTATTN_UNROLL
  for (int b = 0; b < kWarpBlocks; ++b) {
    const auto cols = part.cols(b);
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) {
      g[b].v[i] = (g[b].v[i] - mean_g - xhat[b].v[i] * mean_g_xhat) * rstd;
    }
    cols.store(row_of<Residual>(args.dresidual, row), g[b]);
    if (args.dx.data == nullptr && !args.with_dx_bias) continue;
    args.dropout.apply(g[b], row, part.block(b));
    if (args.dx.data != nullptr) cols.store(row_of<X>(args.dx, row), g[b]);
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) sums.dx_bias[b].v[i] += g[b].v[i];
  }
}

template <class X, class Residual, bool kPaired>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kMaxWarps* kWarpSize, 1)
    layer_norm_bwd_kernel(NormArgs args) {
  const NormRow<X, Residual, kPaired> part(args);
  NormSums sums{};
  for (int64_t row = block_idx().x; row < args.rows; row += args.parts) {
    backward_row(args, part, row, sums);
  }
  FASTATTN_UNROLL
  for (int b = 0; b < kWarpBlocks; ++b) {
    const auto cols = part.cols(b);
    cols.store(part_of(args.partials, args, 0), sums.dweight[b]);
    cols.store(part_of(args.partials, args, 1), sums.dbias[b]);
    if (args.with_dx_bias) cols.store(part_of(args.partials, args, 2), sums.dx_bias[b]);
  }
}

NormArgs args_of(const LayerNormParams& params) {
  NormArgs args{};
  args.x = params.x, args.residual = params.residual, args.out = params.out;
  args.x_bias = static_cast<const float*>(params.x_bias);
  args.weight = static_cast<const float*>(params.weight);
  args.bias = static_cast<const float*>(params.bias);
  args.mean = static_cast<float*>(params.mean), args.rstd = static_cast<float*>(params.rstd);
  args.rows = params.rows, args.cols = params.hidden_size;
  args.eps = static_cast<float>(params.eps);
  args.dropout = RowDropout::of(params);
  return args;
}

uint32_t warps_of(const NormArgs& args) {
  const int64_t warps = (args.cols + kWarpCols - 1) / kWarpCols;
  if (warps > kMaxWarps) {
    throw std::invalid_argument("dropout_add_layer_norm: hidden_size must be at most " +
                                std::to_string(kMaxHiddenSize) + " on a GPU; got " +
                                std::to_string(args.cols));
  }
  return static_cast<uint32_t>(warps);
}
static_assert(kMaxHiddenSize == kMaxWarps * kWarpCols, "a block of threads holds a row");

// Calls body(x, residual), values whose types are those of the matrices.
template <class Body>
void dispatch(const LayerNormParams& params, const Body& body) {
  dispatch_hidden(params.x_dtype, [&](auto x) {
    if constexpr (sizeof(x) < sizeof(float)) {
      if (params.dtype == ElementType::kFloat32) return body(x, float{});
    }
    return body(x, x);
  });
}

}  // namespace

void layer_norm_fwd(const LayerNormParams& params, void* stream) {
  if (params.rows == 0) return;
  const NormArgs args = args_of(params);
  const uint32_t warps = warps_of(args);
  const dim3 grid(static_cast<uint32_t>(args.rows < kMaxGrid ? args.rows : kMaxGrid));
  dispatch(params, [&](auto x, auto residual) {
    using X = decltype(x);
    using Residual = decltype(residual);
    const bool paired = is_paired<X>(args.x, args.cols) &&
                        is_paired<Residual>(args.residual, args.cols) &&
                        is_paired<Residual>(args.out, args.cols) &&
                        are_paired({args.x_bias, args.weight, args.bias});
    dispatch_bool(paired, [&](auto is_paired) {
      run("dropout_add_layer_norm", layer_norm_fwd_kernel<X, Residual, decltype(is_paired)::value>,
          grid, warps * kWarpSize, warps * 4, stream, args);
    });
  });
}

void layer_norm_bwd(const LayerNormBwdParams& params, void* stream) {
  NormArgs args = args_of(params);
  args.dout = params.dout, args.dresidual = params.dresidual, args.dx = params.dx;
  args.partials = params.partials.data, args.parts = params.partials.parts;
  args.with_dx_bias = params.dx_bias != nullptr;
  if (args.parts < 1 || args.parts > kMaxGrid) {
    throw std::invalid_argument("dropout_add_layer_norm: there must be at least one part of sums");
  }
  const uint32_t warps = warps_of(args);
  const dim3 grid(static_cast<uint32_t>(args.parts));
  dispatch(params, [&](auto x, auto residual) {
    using X = decltype(x);
    using Residual = decltype(residual);
    const bool paired =
        is_paired<X>(args.x, args.cols) && is_paired<Residual>(args.residual, args.cols) &&
        is_paired<Residual>(args.dout, args.cols) &&
        is_paired<Residual>(args.dresidual, args.cols) && is_paired<X>(args.dx, args.cols) &&
        are_paired({args.x_bias, args.weight, args.partials});
    dispatch_bool(paired, [&](auto is_paired) {
      run("dropout_add_layer_norm", layer_norm_bwd_kernel<X, Residual, decltype(is_paired)::value>,
          grid, warps * kWarpSize, 2 * warps * 4, stream, args);
    });
  });
  add_partials("dropout_add_layer_norm", params.partials, params.hidden_size,
               {params.dweight, params.dbias, params.dx_bias}, stream);
}

}  // namespace fastattn::cuda
