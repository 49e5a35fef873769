// Kernels with one mistake each in what only Hopper has, and next to them kernels with none. A
// comment `finding: NAME` marks the line that the report about kernel NAME must name.
#include <cstring>
#include <string>

#include "emulator/control.h"
#include "hopper/tile.cuh"

namespace fastattn::cuda {
namespace {

struct Params {
  const uint32_t* input;  // 64 rows of 64 numbers, twice
  float* output;          // 64 x 64
};

// A block is one warpgroup unless said otherwise. Two tiles, then barriers.
constexpr uint32_t kTile = 64 * 128, kBarrier = 2 * kTile;

uint32_t tid() { return thread_idx().x; }
uint32_t left() { return smem_base(); }
uint32_t right() { return smem_base() + kTile; }
uint32_t barrier(uint32_t i = 0) { return smem_base() + kBarrier + 8 * i; }

// The chunk of number i of the two tiles: where it lies, and where it comes from.
uint32_t chunk_addr(uint32_t i) {
  return smem_base() + i / 512 * kTile +
         SmemTile<64>::offset(static_cast<int>(i % 512 / 8), static_cast<int>(i % 8));
}

template <bool kHalf = false>
void store_tiles(Params params) {
  for (uint32_t i = tid(); i < (kHalf ? 512 : 1024); i += 128) {
    sts(chunk_addr(i), ldg(reinterpret_cast<const uint4*>(params.input) + i));
  }
}

void multiply(float (&c)[8][4], uint64_t a, uint64_t b) {
  wgmma_fence(c);
  for (int k = 0; k < 4; ++k) {
    wgmma<half_t, false, false>(c, a, b, k > 0);
    a += Factor<64>::kNextCols, b += Factor<64>::kNextCols;
  }
  wgmma_commit();
}
void multiply(float (&c)[8][4]) {
  multiply(c, Factor<64>::descriptor(left()), Factor<64>::descriptor(right()));
}

void store_result(Params params, const float (&c)[8][4]) {
  for (int n = 0; n < 8; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp_idx() + quad_row() + 8 * (i / 2), col = 8 * n + quad_col() + i % 2;
      stg(params.output + 64 * row + col, c[n][i]);
    }
  }
}

// ---- products ----

enum class Fence { kNone, kBeforeBarrier, kAfterBarrier };

template <Fence kFence>
void product(Params params) {
  store_tiles(params);
  if (kFence == Fence::kBeforeBarrier) fence_proxy_async();
  sync_threads();
  if (kFence == Fence::kAfterBarrier) fence_proxy_async();
  if (kFence == Fence::kAfterBarrier) sync_warp();
  float c[8][4];
  multiply(c);
  wgmma_wait<0>(c);
  store_result(params, c);
}

template <bool kWaitFirst>
void product_of_copies(Params params) {
  for (uint32_t i = tid(); i < 1024; i += 128) {
    cp_async_16(chunk_addr(i), params.input + 4 * i, true);
  }
  cp_async_commit();
  if (!kWaitFirst) fence_proxy_async();
  cp_async_wait<0>();
  if (kWaitFirst) fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c);
  wgmma_wait<0>(c);
  store_result(params, c);
}

void product_of_nothing(Params params) {
  store_tiles<true>(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c);
  wgmma_wait<0>(c);
}

void store_under_a_product(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c);
  sts(chunk_addr(tid()), uint4{0, 0, 0, 0});
  wgmma_wait<0>(c);
}

// The other warps have not waited for their part of the product.
void store_after_ones_own_wait(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c);
  wgmma_wait<0>(c);
  sts(chunk_addr(512 + tid()), uint4{0, 0, 0, 0});
}

// What is read before the wait is NaN, and the product ends all the same.
void result_before_the_wait(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c);
  store_result(params, c);
  wgmma_wait<0>(c);
}

void no_wgmma_fence(Params) {
  float c[8][4] = {};
  const uint64_t swizzled = uint64_t{1} << 62;
  wgmma<half_t, false, false>(c, swizzled, swizzled, true);  // finding: no_wgmma_fence
}

void exit_with_a_product(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  wgmma_fence(c);
  const uint64_t factor = Factor<64>::descriptor(left());
  wgmma<half_t, false, false>(c, factor, factor, false);  // finding: exit_with_a_product
  wgmma_commit();
}

void different_factors(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c, Factor<64>::descriptor(warp_idx() == 3 ? right() : left()),
           Factor<64>::descriptor(right()));
  wgmma_wait<0>(c);
}

void descriptor_without_swizzle(Params params) {
  store_tiles(params);
  sync_threads();
  float c[8][4];
  multiply(c, Factor<64>::descriptor(left()) << 2 >> 2, Factor<64>::descriptor(right()));
  wgmma_wait<0>(c);
}

void factor_past_the_end(Params params) {
  store_tiles(params);
  fence_proxy_async();
  sync_threads();
  float c[8][4];
  multiply(c, Factor<64>::descriptor(left()), Factor<64>::descriptor(right() + 2 * kTile));
  wgmma_wait<0>(c);
}

// ---- barriers ----

void make_barrier(uint32_t count) {
  if (tid() == 0) mbarrier_init(barrier(), count);
  sync_threads();
}
void arrive_as_warp() {
  sync_warp();
  if (lane_idx() == 0) mbarrier_arrive(barrier());
}

// The first three warps store, the last one reads: in phase 0, whose parity is 0.
template <uint32_t kParity, bool kSyncWarp>
void hand_over(Params params) {
  make_barrier(3);
  const uint32_t slot = smem_base() + 4 * tid();
  if (warp_idx() < 3) {
    sts(slot, 1u);
    if (kSyncWarp) sync_warp();
    if (lane_idx() == 0) mbarrier_arrive(barrier());
  } else {
    mbarrier_wait(barrier(), kParity);
    const uint32_t sum = lds<uint32_t>(slot - 128) + lds<uint32_t>(slot - 256);
    stg(params.output + tid(), static_cast<float>(sum));
  }
}

// Warp 0 overwrites what warp 1 has taken in, or, unless it waits for that, what it has not; it may
// then be so far ahead that warp 1 misses a phase.
template <bool kWaitForReader>
void take_turns(Params params) {
  if (tid() == 0) mbarrier_init(barrier(0), 1), mbarrier_init(barrier(1), 1);
  sync_threads();
  const uint32_t slot = smem_base() + 4 * lane_idx();
  for (uint32_t n = 0; n < 4; ++n) {
    if (warp_idx() == 0) {
      if (kWaitForReader && n > 0) mbarrier_wait(barrier(1), (n - 1) % 2);
      sts(slot, n);
      arrive_as_warp();
    } else if (warp_idx() == 1) {
      mbarrier_wait(barrier(0), n % 2);
      stg(params.output + 32 * n + lane_idx(), static_cast<float>(lds<uint32_t>(slot)));
      sync_warp();
      if (lane_idx() == 0) mbarrier_arrive(barrier(1));
    }
  }
}

void too_few_arrive(Params) {
  make_barrier(3);
  if (warp_idx() > 1) arrive_as_warp();
  mbarrier_wait(barrier(), 0);  // finding: too_few_arrive
}

void no_barrier_there(Params) {
  if (tid() == 0) mbarrier_arrive(barrier());  // finding: no_barrier_there
}

void barrier_that_others_do_not_know(Params) {
  if (tid() == 0) mbarrier_init(barrier(), 4);
  if (warp_idx() == 0) sync_warp();
  arrive_as_warp();
  mbarrier_wait(barrier(), 0);
}

void barrier_for_nobody(Params) {
  if (tid() == 0) mbarrier_init(barrier(), 0);  // finding: barrier_for_nobody
}

struct Case {
  const char* name;
  void (*kernel)(Params);
};

const Case kCases[] = {
    {"product", product<Fence::kBeforeBarrier>},
    {"no_fence", product<Fence::kNone>},
    {"fence_after_the_barrier", product<Fence::kAfterBarrier>},
    {"product_of_copies", product_of_copies<true>},
    {"fence_before_the_copies", product_of_copies<false>},
    {"product_of_nothing", product_of_nothing},
    {"store_under_a_product", store_under_a_product},
    {"store_after_ones_own_wait", store_after_ones_own_wait},
    {"result_before_the_wait", result_before_the_wait},
    {"no_wgmma_fence", no_wgmma_fence},
    {"exit_with_a_product", exit_with_a_product},
    {"different_factors", different_factors},
    {"descriptor_without_swizzle", descriptor_without_swizzle},
    {"factor_past_the_end", factor_past_the_end},
    {"hand_over", hand_over<0, true>},
    {"wrong_parity", hand_over<1, true>},
    {"arrival_without_sync_warp", hand_over<0, false>},
    {"take_turns", take_turns<true>},
    {"overwrite_too_early", take_turns<false>},
    {"too_few_arrive", too_few_arrive},
    {"no_barrier_there", no_barrier_there},
    {"barrier_that_others_do_not_know", barrier_that_others_do_not_know},
    {"barrier_for_nobody", barrier_for_nobody},
};

}  // namespace
}  // namespace fastattn::cuda

using namespace fastattn;

// Returns the finding; null if there is none.
extern "C" const char* run(const char* name, int schedule, uint64_t seed, int compute_capability,
                           const uint32_t* input, float* output) {
  static std::string finding;
  emulator::Options options;
  options.schedule = static_cast<emulator::Schedule>(schedule);
  options.seed = seed;
  options.compute_capability = compute_capability;
  emulator::set_options(options);
  emulator::GlobalBuffers buffers;
  buffers.add("input", input, 2 * cuda::kTile, /*writable=*/false);
  buffers.add("output", output, 64 * 64 * sizeof(float), /*writable=*/true);
  for (const cuda::Case& c : cuda::kCases) {
    if (std::strcmp(c.name, name) != 0) continue;
    try {
      cuda::launch(c.kernel, {1}, {128}, cuda::kBarrier + 16, nullptr, {input, output});
    } catch (const emulator::Finding& caught) {
      finding = caught.what();
      return finding.c_str();
    }
    return nullptr;
  }
  finding = "there is no such kernel";
  return finding.c_str();
}
