// Bias and exact GELU, forward and backward.
//
//   h     = x + bias
//   out   = h * cdf(h)                      cdf: of the normal distribution, (1 + erf(h/sqrt(2)))/2
//   dx    = dout * (cdf(h) + h * pdf(h))    pdf: its density
//   dbias = sum over rows of dx
//
// cdf and pdf share the exponential, as common/normal_tail.h has it. A warp takes a block of 256
// columns of some rows. In the backward pass the rows of a block of columns are divided among
// `parts` blocks of threads, each of which leaves one partial sum.
#include "common/normal_tail.h"
#include "cuda/hidden.h"
#include "cuda/rows.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kMaxGridY = 65535;

struct GeluArgs {
  MatrixRef x, out, dout;  // out: dx in the backward pass
  const float* bias;
  float* partials;  // null if there is no dbias
  int64_t rows, cols;
};

using Fit = TailFit<float>;

// Horner's rule; coefficients are constants of the code, which reads no table.
template <int kPower>
__device__ __forceinline__ float tail_polynomial(float u) {
  constexpr int kHighest = sizeof(Fit::kCoefficients) / sizeof(float) - 1;
  constexpr float kCoefficient = Fit::kCoefficients[kHighest - kPower];
  if constexpr (kPower == kHighest) {
    return kCoefficient;
  } else {
    return tail_polynomial<kPower + 1>(u) * u + kCoefficient;
  }
}

// The left tail of the normal distribution: cdf(t) = exp * ratio.
struct NormalTail {
  float t, exp, ratio;  // -|h|, exp(-t^2/2), cdf(t) / exp

  __device__ __forceinline__ explicit NormalTail(float h) {
    constexpr float kCentre = Fit::kCentre, kEnd = Fit::kEnd;
    t = h > 0.0f ? -h : h;
    t = t < kEnd ? kEnd : t;  // NaN stays
    const float inverse = 1.0f / (kCentre - t);
    ratio = tail_polynomial<0>(1.0f - inverse * (2.0f * kCentre)) * inverse;
    exp = exp2_fast(t * t * static_cast<float>(-kHalfLog2E));
  }
};

// h * cdf(h), as h - |h| * cdf(-|h|) on the right side.
__device__ __forceinline__ float gelu(float h) {
  const NormalTail at(h);
  return (h > 0.0f ? h : 0.0f) + at.t * (at.exp * at.ratio);
}

// cdf(h) + h * pdf(h), as 1 minus its value at -|h| on the right side.
__device__ __forceinline__ float gelu_slope(float h) {
  const NormalTail at(h);
  const float left = at.exp * (at.t * static_cast<float>(kDensityAt0) + at.ratio);
  return h > 0.0f ? 1.0f - left : left;
}

template <class T, bool kPaired>
__device__ __forceinline__ LaneRow load_h(const GeluArgs& args, const LaneCols<kPaired>& cols,
                                          int64_t row, const LaneRow& bias) {
  LaneRow h = cols.load(row_of<const T>(args.x, row));
  FASTATTN_UNROLL
  for (int i = 0; i < kLaneCols; ++i) h.v[i] += bias.v[i];
  return h;
}

template <class T, bool kPaired>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kWarps* kWarpSize, 1) gelu_fwd_kernel(GeluArgs args) {
  const LaneCols<kPaired> cols(int64_t{block_idx().x} * kBlockCols, args.cols);
  const LaneRow bias = args.bias == nullptr ? LaneRow{} : cols.load(args.bias);
  const int64_t step = int64_t{grid_dim().y} * kWarps;
  int64_t row = int64_t{block_idx().y} * kWarps + thread_idx().x / kWarpSize;
  for (; row < args.rows; row += step) {
    LaneRow h = load_h<T>(args, cols, row, bias);
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) h.v[i] = gelu(h.v[i]);
    cols.store(row_of<T>(args.out, row), h);
  }
}

// Adds up the sums of the warps and stores them as one part.
template <bool kPaired>
__device__ __forceinline__ void store_part(const GeluArgs& args, const LaneCols<kPaired>& cols,
                                           const LaneRow& sums) {
  const uint32_t warp = thread_idx().x / kWarpSize, lane = thread_idx().x % kWarpSize;
  const uint32_t base = smem_base() + lane * 4;
  constexpr uint32_t kStep = kWarpSize * 4, kWarpBytes = kLaneCols * kStep;
  FASTATTN_UNROLL
  for (int i = 0; i < kLaneCols; ++i) sts(base + warp * kWarpBytes + i * kStep, sums.v[i]);
  sync_threads();
  if (warp != 0) return;
  LaneRow total = sums;
  for (int w = 1; w < kWarps; ++w) {
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) {
      total.v[i] += lds<float>(base + w * kWarpBytes + i * kStep);
    }
  }
  cols.store(args.partials + int64_t{block_idx().y} * args.cols, total);
}

template <class T, bool kPaired>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kWarps* kWarpSize, 1) gelu_bwd_kernel(GeluArgs args) {
  const LaneCols<kPaired> cols(int64_t{block_idx().x} * kBlockCols, args.cols);
  const LaneRow bias = args.bias == nullptr ? LaneRow{} : cols.load(args.bias);
  LaneRow sums{};
  const int64_t step = int64_t{grid_dim().y} * kWarps;
  int64_t row = int64_t{block_idx().y} * kWarps + thread_idx().x / kWarpSize;
  for (; row < args.rows; row += step) {
    const LaneRow h = load_h<T>(args, cols, row, bias);
    LaneRow grad = cols.load(row_of<const T>(args.dout, row));
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) {
      grad.v[i] *= gelu_slope(h.v[i]);
      sums.v[i] += grad.v[i];
    }
    cols.store(row_of<T>(args.out, row), grad);
  }
  if (args.partials != nullptr) store_part(args, cols, sums);
}

dim3 grid_of(const GeluArgs& args, int64_t row_blocks) {
  return {static_cast<uint32_t>((args.cols + kBlockCols - 1) / kBlockCols),
          static_cast<uint32_t>(row_blocks < kMaxGridY ? row_blocks : kMaxGridY)};
}

}  // namespace

void gelu_fwd(const GeluParams& params, void* stream) {
  if (params.rows == 0) return;
  const GeluArgs args{params.x, params.out,  {},         static_cast<const float*>(params.bias),
                      nullptr,  params.rows, params.cols};
  const dim3 grid = grid_of(args, (args.rows + kWarps - 1) / kWarps);
  dispatch_hidden(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool paired = is_paired<T>(args.x, args.cols) && is_paired<T>(args.out, args.cols) &&
                        are_paired({args.bias});
    dispatch_bool(paired, [&](auto is_paired) {
      run("bias_gelu", gelu_fwd_kernel<T, decltype(is_paired)::value>, grid, kWarps * kWarpSize, 0,
          stream, args);
    });
  });
}

void gelu_bwd(const GeluBwdParams& params, void* stream) {
  const bool with_sums = params.dbias != nullptr;
  if (params.rows == 0 && !with_sums) return;
  const GeluArgs args{params.x,
                      params.dx,
                      params.dout,
                      static_cast<const float*>(params.bias),
                      with_sums ? params.partials.data : nullptr,
                      params.rows,
                      params.cols};
  if (with_sums && (params.partials.parts < 1 || params.partials.parts > kMaxGridY)) {
    throw std::invalid_argument("bias_gelu: there must be 1 to 65535 parts of sums");
  }
  const dim3 grid =
      grid_of(args, with_sums ? params.partials.parts : (args.rows + kWarps - 1) / kWarps);
  dispatch_hidden(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool paired = is_paired<T>(args.x, args.cols) && is_paired<T>(args.out, args.cols) &&
                        is_paired<T>(args.dout, args.cols) &&
                        are_paired({args.bias, args.partials});
    dispatch_bool(paired, [&](auto is_paired) {
      run("bias_gelu", gelu_bwd_kernel<T, decltype(is_paired)::value>, grid, kWarps * kWarpSize,
          kWarps * kBlockCols * 4, stream, args);
    });
  });
  if (with_sums) add_partials("bias_gelu", params.partials, params.cols, {params.dbias}, stream);
}

}  // namespace fastattn::cuda
