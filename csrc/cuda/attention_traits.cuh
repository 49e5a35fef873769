// What the attention kernels are compiled for, and the choice among it. The one place that turns
// numbers into template arguments.
#pragma once

#include <sstream>
#include <stdexcept>

#include "cuda/attention.h"
#include "cuda/mask.cuh"

namespace fastattn::cuda {

// The instantiations of a kernel: 2 element types, 4 head dims, 3 sets of options.
enum class Variant {
  kPlain,    // lengths, padding and grouped heads alone
  kDropout,  // and dropout
  kGeneral,  // everything, asked at run time
};

// How a block divides its work among warps. Sizes change speed, never results.
struct Shape {
  int row_tiles;  // tiles of 16 rows that each warp owns
  int stream;     // rows of the other side that meet them at once
};

constexpr int kNumWarps = 4;

// A warp with two tiles of rows multiplies each fragment it reads from shared memory twice; one
// with one leaves registers for wide rows. ptxas 13.0 reports no spill for sm_75 to sm_120.
constexpr Shape fwd_shape(int head_dim, bool general) {
  return {head_dim <= 64 && !general ? 2 : 1, 64};
}
constexpr Shape dkdv_shape(int head_dim, bool general) {
  return {head_dim <= 32 && !general ? 2 : 1, head_dim <= 64 ? 64 : head_dim <= 96 ? 32 : 16};
}
constexpr Shape dq_shape(int head_dim, bool general) {
  return {head_dim <= 64 && !general ? 2 : 1, head_dim <= 64 ? 64 : 32};
}

template <class T_, int kHeadDim_, Variant kVariant>
struct Traits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kPanelCols = kHeadDim;  // of a tile in shared memory (tile.cuh)
  static constexpr int kThreads = kNumWarps * kWarpSize;
  static constexpr bool kGeneral = kVariant == Variant::kGeneral;
  static constexpr bool kMayDrop = kVariant != Variant::kPlain;
  // Whether the backward kernels hold left factors in registers, two for each row that they own.
  static constexpr bool kHoldsLeft = kHeadDim <= 64;
  static constexpr Shape kFwd = fwd_shape(kHeadDim, kGeneral);
  static constexpr Shape kDkdv = dkdv_shape(kHeadDim, kGeneral);
  static constexpr Shape kDq = dq_shape(kHeadDim, kGeneral);
};

// Rows of one side that a block owns.
constexpr int owned_rows(Shape shape) { return kNumWarps * kFragmentRows * shape.row_tiles; }

inline bool are_aligned(const AttentionParams& params) {
  const auto aligned = [&](const TensorRef& ref) { return is_aligned(ref, params.head_dim); };
  return aligned(params.q) && aligned(params.k) && aligned(params.v) && aligned(params.out);
}
inline bool are_aligned(const AttentionBwdParams& params) {
  const auto aligned = [&](const TensorRef& ref) { return is_aligned(ref, params.head_dim); };
  return are_aligned(static_cast<const AttentionParams&>(params)) && aligned(params.dout) &&
         aligned(params.dq) && aligned(params.dk) && aligned(params.dv);
}

template <class T, int kHeadDim, class Params, class Function>
void dispatch_variant(const Params& params, const Function& function) {
  const bool windowed = params.window_left >= 0 || params.window_right >= 0;
  if (has_score_options(params) || windowed || !are_aligned(params)) {
    function(Traits<T, kHeadDim, Variant::kGeneral>{});
  } else if (params.drop_threshold != 0) {
    function(Traits<T, kHeadDim, Variant::kDropout>{});
  } else {
    function(Traits<T, kHeadDim, Variant::kPlain>{});
  }
}

// Calls function(T{}) with the element type.
template <class Function>
void dispatch_element(ElementType dtype, const Function& function) {
  if (dtype == ElementType::kFloat16) return function(half_t{});
  if (dtype == ElementType::kBFloat16) return function(bf16_t{});
  throw std::invalid_argument(
      "attention: dtype must be float16 or bfloat16 on a GPU. Convert q, k and v, or call "
      "attention(..., backend=\"triton\").");
}

// Calls function(integral_constant<int, N>{}), N the smallest compiled head_dim that holds it.
template <class Function>
void dispatch_head_dim(int64_t head_dim, const Function& function) {
  if (head_dim <= 32) return function(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return function(std::integral_constant<int, 64>{});
  if (head_dim <= 96) return function(std::integral_constant<int, 96>{});
  if (head_dim <= kMaxHeadDim) return function(std::integral_constant<int, kMaxHeadDim>{});
  throw std::invalid_argument("attention: head_dim must be at most " + std::to_string(kMaxHeadDim) +
                              "; got " + std::to_string(head_dim) +
                              ". Call attention(..., backend=\"triton\").");
}

// Calls function(Traits{}) with what serves the call.
template <class Params, class Function>
void dispatch(const Params& params, const Function& function) {
  dispatch_element(params.dtype, [&](auto element) {
    dispatch_head_dim(params.head_dim, [&](auto head_dim) {
      dispatch_variant<decltype(element), decltype(head_dim)::value>(params, function);
    });
  });
}

// Launches a kernel of Traits::kThreads threads; an empty grid is nothing to do.
template <class Params>
void launch_checked(const char* name, void (*kernel)(Params), dim3 grid, int threads,
                    uint32_t smem_bytes, void* stream, const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const char* error = launch(kernel, grid, dim3(threads), smem_bytes, stream, params);
  if (error == nullptr) return;
  std::ostringstream message;
  message << "attention: " << name << " must start; got \"" << error << "\" for a grid of "
          << grid.x << " x " << grid.y << " x " << grid.z << " blocks of " << threads
          << " threads and " << smem_bytes << " bytes of shared memory.";
  throw std::runtime_error(message.str());
}

}  // namespace fastattn::cuda
