// The products of warpgroups on factors that the caller chooses, as conformance.cu has the
// instructions of a warp: compiled by nvcc it shows what a GPU does.
//
// One block of a warpgroup serves one set of factors: two tiles of 64 rows of 64 numbers, and a sum
// of 64 x 64 to add to. An operation's number is its place in kOperations.
#include "hopper/tile.cuh"

namespace fastattn::cuda {
namespace {

struct Params {
  const void* factors;  // (blocks, 2, 64, 64) numbers of 16 bits
  const float* sum;     // (blocks, 64, 64)
  float* result;        // (blocks, 64, 64)
};

constexpr uint32_t kTileBytes = 64 * 128;
constexpr int kThreads = kGroupWarps * kWarpSize;

// The tiles of a block: rows of 64 numbers, or the first 32 of each where kCols is 32.
template <int kCols>
__device__ void load(const Params& params) {
  for (int i = static_cast<int>(thread_idx().x); i < 2 * 64 * kCols / kChunk; i += kThreads) {
    const int tile = i / (64 * kCols / kChunk), row = i / (kCols / kChunk) % 64;
    const int chunk = i % (kCols / kChunk);
    const uint4* src = static_cast<const uint4*>(params.factors) +
                       ((block_idx().x * 2 + tile) * 64 + row) * 8 + chunk;
    sts(smem_base() + tile * kTileBytes + SmemTile<kCols>::offset(row, chunk), ldg(src));
  }
  fence_proxy_async();
  sync_threads();
}

// left @ right.T + sum: both factors in shared memory, rows contiguous.
template <class T, int kCols>
struct ByRows {
  static constexpr int kColTiles = 8, kLoaded = kCols;
  __device__ static void issue(float (&c)[kColTiles][4]) {
    uint64_t a = Factor<kCols>::descriptor(smem_base());
    uint64_t b = Factor<kCols>::descriptor(smem_base() + kTileBytes);
    for (int k = 0; k < kCols / 16; ++k) {
      wgmma<T, false, false>(c, a, b, true);
      a += Factor<kCols>::kNextCols, b += Factor<kCols>::kNextCols;
    }
  }
};

// left @ right + sum: the left factor in registers, rows of the right one are added up.
template <class T, int kCols>
struct ByCols {
  static constexpr int kColTiles = kCols / 8, kLoaded = 64;
  __device__ static void issue(float (&c)[kColTiles][4]) {
    LeftRows<64, 1, true> left;
    left.load(smem_base(), kFragmentRows * warp_idx());
    uint32_t a[4][4];
    FASTATTN_UNROLL
    for (int k = 0; k < 4; ++k) left.get(0, k, a[k]);
    wgmma_fence(c, a);
    // Of the rows, the first kCols numbers: the tile keeps its width.
    uint64_t b = Factor<64>::descriptor(smem_base() + kTileBytes);
    FASTATTN_UNROLL
    for (int k = 0; k < 4; ++k) {
      wgmma<T, true>(c, a[k], b, true);
      b += Factor<64>::kNextRows;
    }
  }
};

// left.T @ right + sum.
template <class T, int kCols>
struct Transposed {
  static constexpr int kColTiles = kCols / 8, kLoaded = 64;
  __device__ static void issue(float (&c)[kColTiles][4]) {
    uint64_t a = Factor<64>::descriptor(smem_base());
    uint64_t b = Factor<64>::descriptor(smem_base() + kTileBytes);
    for (int k = 0; k < 4; ++k) {
      wgmma<T, true, true>(c, a, b, true);
      a += Factor<64>::kNextRows, b += Factor<64>::kNextRows;
    }
  }
};

// The same for tiles of 32 columns, of which the result has as many.
template <class T>
struct NarrowRight {
  static constexpr int kColTiles = 4, kLoaded = 32;
  __device__ static void issue(float (&c)[kColTiles][4]) {
    uint32_t a[4][4];  // ones
    FASTATTN_UNROLL
    for (int k = 0; k < 4; ++k) {
      FASTATTN_UNROLL
      for (int i = 0; i < 4; ++i) a[k][i] = pack2<T>(1.0f, 1.0f);
    }
    wgmma_fence(c, a);
    issue_by_cols<T>(c, a, FactorTile<32, 64>{smem_base() + kTileBytes});
  }
};

template <class Operation>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kThreads, 1)
    conformance_hopper_kernel(const Params params) {
  load<Operation::kLoaded>(params);
  float c[Operation::kColTiles][4];
  const int row = kFragmentRows * warp_idx() + quad_row();
  const auto place = [&](int n, int i) {
    return (block_idx().x * 64 + row + 8 * (i / 2)) * 64 + 8 * n + quad_col() + i % 2;
  };
  FASTATTN_UNROLL
  for (int n = 0; n < Operation::kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i] = ldg(params.sum + place(n, i));
  }
  wgmma_fence(c);
  Operation::issue(c);
  wgmma_commit();
  wgmma_wait<0>(c);
  FASTATTN_UNROLL
  for (int n = 0; n < Operation::kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) stg(params.result + place(n, i), c[n][i]);
  }
}

void (*const kOperations[])(Params) = {
    conformance_hopper_kernel<ByRows<half_t, 64>>,
    conformance_hopper_kernel<ByRows<bf16_t, 64>>,
    conformance_hopper_kernel<ByRows<half_t, 32>>,
    conformance_hopper_kernel<ByCols<half_t, 64>>,
    conformance_hopper_kernel<ByCols<bf16_t, 64>>,
    conformance_hopper_kernel<ByCols<bf16_t, 32>>,
    conformance_hopper_kernel<Transposed<half_t, 64>>,
    conformance_hopper_kernel<Transposed<bf16_t, 64>>,
    conformance_hopper_kernel<Transposed<half_t, 32>>,
    conformance_hopper_kernel<NarrowRight<half_t>>,
};

}  // namespace
}  // namespace fastattn::cuda

#ifdef FASTATTN_EMULATE
#include "emulator/control.h"
#endif

// Pointers are the device's, or the host's in an emulated build. Returns what is wrong, or null.
extern "C" const char* conformance_hopper(int operation, const void* factors, const float* sum,
                                          float* result, uint32_t blocks) {
  using namespace fastattn;
#ifdef FASTATTN_EMULATE
  const size_t bytes = size_t{blocks} * 64 * 64 * sizeof(float);
  emulator::GlobalBuffers buffers;
  buffers.add("factors", factors, bytes, /*writable=*/false);
  buffers.add("sum", sum, bytes, /*writable=*/false);
  buffers.add("result", result, bytes, /*writable=*/true);
#endif
  return cuda::launch(cuda::kOperations[operation], {blocks}, {cuda::kThreads},
                      2 * cuda::kTileBytes, nullptr, {factors, sum, result});
}
