// Tiles as the tensor cores of Hopper read them from shared memory, and products of a warpgroup.
//
// A panel's rows are 64 or 128 bytes, and SmemTile permutes their chunks just as the hardware's
// swizzles of 64 and 128 bytes do. So one panel is a factor with contiguous rows (q and k in q @
// k.T) and one with contiguous columns (v in p @ v): the descriptor is the same, and the
// instruction says which. A tile of 128 columns is two panels, whose products are added up, or
// stand side by side. The layout of a warp's part of a product is that of mma_m16n8k16, so what
// happens between products (mask.cuh, online_softmax.cuh, dropout.cuh, score_grad.cuh) is shared
// with cuda/. Source of the layouts: PTX ISA 8.0, "Shared Memory Matrix Layout" and "Matrix
// Descriptor Format".
#pragma once

#include "cuda/attention_traits.cuh"
#include "cuda/tile.cuh"
#include "hopper/attention.h"
#include "hopper/device.cuh"

namespace fastattn::cuda {

constexpr int kGroupWarps = 4;  // of a warpgroup
constexpr int kGroupThreads = kGroupWarps * kWarpSize;
constexpr int kGroupRows = 64;  // rows of its products
constexpr int kNumGroups = 2;   // of a block

// Of the thread's warpgroup. By way of a lane's value, from which the compiler knows that a warp
// branches on it as a whole; it would run products one after the other in a branch that might
// divide one.
__device__ __forceinline__ int group_idx() { return shfl(warp_idx() / kGroupWarps, 0); }

// A barrier of one warpgroup.
__device__ __forceinline__ void sync_group(int group) {
  named_barrier_sync(1 + group, kGroupThreads);
}

// The columns of a panel: as many as the widest swizzle has.
constexpr int panel_cols(int head_dim) { return head_dim < 64 ? head_dim : 64; }

// What a kernel of csrc/cuda is compiled for, with the threads of two warpgroups.
template <class Base>
struct HopperTraits : Base {
  static constexpr int kThreads = kNumGroups * kGroupThreads;
  static constexpr int kPanelCols = panel_cols(Base::kHeadDim);
  // Whether dq of up to 512 queries stays beside the rest in shared memory, in the backward pass.
  static constexpr bool kKeepsDq = Base::kHeadDim <= 64;
};

// Calls function(HopperTraits{}) with what serves the call.
template <class Params, class Function>
void dispatch_hopper(const Params& params, const Function& function) {
  const auto with_head_dim = [&](auto element, auto head_dim) {
    dispatch_variant<decltype(element), decltype(head_dim)::value>(
        params, [&](auto base) { function(HopperTraits<decltype(base)>{}); });
  };
  dispatch_element(params.dtype, [&](auto element) {
    if (params.head_dim <= 32) return with_head_dim(element, std::integral_constant<int, 32>{});
    if (params.head_dim <= 64) return with_head_dim(element, std::integral_constant<int, 64>{});
    if (params.head_dim <= kHopperMaxHeadDim) {
      return with_head_dim(element, std::integral_constant<int, kHopperMaxHeadDim>{});
    }
    throw std::invalid_argument(
        "attention: head_dim must be at most " + std::to_string(kHopperMaxHeadDim) + "; got " +
        std::to_string(params.head_dim) + ". Call attention(..., backend=\"triton\").");
  });
}

// Bytes that a tile begins at a multiple of: the period of the widest swizzle.
constexpr uint32_t kTileAlignment = 1024;

// A panel of kCols columns.
template <int kCols>
struct Factor {
  static_assert(kCols == 32 || kCols == 64, "rows of a swizzle's width");
  static constexpr uint32_t kRowBytes = SmemTile<kCols>::kRowBytes;

  // Eight rows are what a swizzle permutes, and follow each other without a gap.
  __device__ __forceinline__ static uint64_t descriptor(uint32_t addr) {
    constexpr uint64_t kStride = 8 * kRowBytes, kSwizzle = kCols == 64 ? 1 : 2;
    return kSwizzle << 62 | kStride / 16 << 32 | uint64_t{1} << 16 | addr / 16;
  }
  // From a descriptor to that of the next sixteen rows, or columns.
  static constexpr uint64_t kNextRows = 16 * kRowBytes / 16, kNextCols = 16 * 2 / 16;
};

// A tile in shared memory from one of its rows on, a multiple of 8: kRows rows in all.
template <int kHeadDim, int kRows>
struct FactorTile {
  static constexpr int kCols = panel_cols(kHeadDim), kPanels = kHeadDim / kCols;
  static constexpr uint32_t kRowBytes = SmemTile<kCols>::kRowBytes;
  static constexpr uint32_t kPanelBytes = kRows * kRowBytes, kBytes = kPanels * kPanelBytes;
  uint32_t addr;

  __device__ __forceinline__ FactorTile from_row(int row) const { return {addr + row * kRowBytes}; }
  __device__ __forceinline__ uint64_t descriptor(int panel) const {
    return Factor<kCols>::descriptor(addr + panel * kPanelBytes);
  }
};

// A warp's 16 rows of a tile, as left factors in registers.
template <int kHeadDim>
struct LeftPanels {
  static constexpr int kCols = panel_cols(kHeadDim), kPanels = kHeadDim / kCols;
  LeftRows<kCols, 1, /*kHeld=*/true> panels[kPanels];

  template <int kRows>
  __device__ __forceinline__ void load(FactorTile<kHeadDim, kRows> tile, int row0) {
    FASTATTN_UNROLL
    for (int i = 0; i < kPanels; ++i) panels[i].load(tile.addr + i * tile.kPanelBytes, row0);
  }
};

// c = left @ rows.T, for as many rows as c has columns.
template <class T, int kHeadDim, int kRows, int kColTiles>
__device__ __forceinline__ void issue_by_rows(float (&c)[kColTiles][4],
                                              const LeftPanels<kHeadDim>& left,
                                              FactorTile<kHeadDim, kRows> rows) {
  using Right = FactorTile<kHeadDim, kRows>;
  FASTATTN_UNROLL
  for (int panel = 0; panel < Right::kPanels; ++panel) {
    uint64_t right = rows.descriptor(panel);
    FASTATTN_UNROLL
    for (int k = 0; k < Right::kCols / 16; ++k) {
      uint32_t a[4];
      left.panels[panel].get(0, k, a);
      wgmma<T, /*kTransposedB=*/false>(c, a, right, panel + k > 0);
      right += Factor<Right::kCols>::kNextCols;
    }
  }
}

// c = left @ rows.T, the left factor in shared memory too.
template <class T, int kHeadDim, int kLeftRows, int kRows, int kColTiles>
__device__ __forceinline__ void issue_by_rows(float (&c)[kColTiles][4],
                                              FactorTile<kHeadDim, kLeftRows> left,
                                              FactorTile<kHeadDim, kRows> rows) {
  using Right = FactorTile<kHeadDim, kRows>;
  FASTATTN_UNROLL
  for (int panel = 0; panel < Right::kPanels; ++panel) {
    uint64_t a = left.descriptor(panel), b = rows.descriptor(panel);
    FASTATTN_UNROLL
    for (int k = 0; k < Right::kCols / 16; ++k) {
      wgmma<T, /*kTransposedA=*/false, /*kTransposedB=*/false>(c, a, b, panel + k > 0);
      a += Factor<Right::kCols>::kNextCols, b += Factor<Right::kCols>::kNextCols;
    }
  }
}

// c += left @ rows, sixteen rows for each fragment of the left factor.
template <class T, int kHeadDim, int kRows, int kSteps>
__device__ __forceinline__ void issue_by_cols(float (&c)[kHeadDim / 8][4],
                                              const uint32_t (&left)[kSteps][4],
                                              FactorTile<kHeadDim, kRows> rows) {
  using Right = FactorTile<kHeadDim, kRows>;
  constexpr int kColTiles = Right::kCols / 8;  // of a panel
  FASTATTN_UNROLL
  for (int panel = 0; panel < Right::kPanels; ++panel) {
    auto& part = reinterpret_cast<float (&)[kColTiles][4]>(c[panel * kColTiles]);
    uint64_t right = rows.descriptor(panel);
    FASTATTN_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      wgmma<T, /*kTransposedB=*/true>(part, left[k], right, true);
      right += Factor<Right::kCols>::kNextRows;
    }
  }
}

// c = left.T @ rows, for tiles of one panel.
template <class T, int kHeadDim, int kRows>
__device__ __forceinline__ void issue_transposed(float (&c)[kHeadDim / 8][4],
                                                 FactorTile<kGroupRows, kRows> left,
                                                 FactorTile<kHeadDim, kRows> rows) {
  uint64_t a = left.descriptor(0), b = rows.descriptor(0);
  FASTATTN_UNROLL
  for (int k = 0; k < kRows / 16; ++k) {
    wgmma<T, /*kTransposedA=*/true, /*kTransposedB=*/true>(c, a, b, k > 0);
    a += Factor<kGroupRows>::kNextRows, b += Factor<kHeadDim>::kNextRows;
  }
}

// Two stages of shared memory that all warps fill and read, each at its own pace: a barrier for
// each that is full, and one for each that is empty again.
class Ring {
 public:
  static constexpr uint32_t kBytes = 4 * 8;

  __device__ __forceinline__ explicit Ring(uint32_t smem) : smem_(smem) {}

  // By all threads of the block; a barrier of the block comes after it.
  __device__ __forceinline__ void init(int num_warps) const {
    if (thread_idx().x != 0) return;
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) mbarrier_init(smem_ + 8 * i, num_warps);
  }

  // Fill number `n` goes to stage n % 2. These are called by each warp as a whole, for every fill.
  // What the warp's copies and stores put into the stage is handed over.
  __device__ __forceinline__ void filled(uint32_t n) const {
    fence_proxy_async();
    arrive(full(n));
  }
  __device__ __forceinline__ void wait_until_full(uint32_t n) const {
    mbarrier_wait(full(n), n / 2 % 2);
  }
  // The warp reads the stage no more.
  __device__ __forceinline__ void emptied(uint32_t n) const { arrive(empty(n)); }
  __device__ __forceinline__ void wait_until_empty(uint32_t n) const {
    if (n >= 2) mbarrier_wait(empty(n), n / 2 % 2 ^ 1);  // of what fill n - 2 left there
  }

 private:
  __device__ __forceinline__ static void arrive(uint32_t barrier) {
    sync_warp();
    if (lane_idx() == 0) mbarrier_arrive(barrier);
  }
  __device__ __forceinline__ uint32_t full(uint32_t n) const { return smem_ + 8 * (n % 2); }
  __device__ __forceinline__ uint32_t empty(uint32_t n) const { return smem_ + 16 + 8 * (n % 2); }

  uint32_t smem_;
};

}  // namespace fastattn::cuda
