// The names of hopper/device.cuh on a GPU: PTX that exists for sm_90a alone.
//
// Products are asynchronous: a warpgroup issues them, commits them as a group, and waits for it.
// Until then their accumulators and left factors in registers must not be touched, and the compiler
// does not know. So wgmma_fence and wgmma_wait name these registers, as operands of an empty
// statement that keeps its place among the others.
#pragma once

#include "cuda/ptx.cuh"

namespace fastattn::cuda {

// ---- barriers in shared memory ----

// A barrier of 8 bytes completes a phase when `count` arrivals have come, and begins the next.
__device__ __forceinline__ void mbarrier_init(uint32_t addr, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(addr), "r"(count) : "memory");
}

// By one lane, after a sync_warp: what the warp did before that is seen by those who wait.
__device__ __forceinline__ void mbarrier_arrive(uint32_t addr) {
  asm volatile(
      "{\n.reg .b64 state;\n"
      "mbarrier.arrive.release.cta.shared::cta.b64 state, [%0];\n}" ::"r"(addr)
      : "memory");
}

// By whole warps: until the phase of this parity is complete. Phases count from 0.
__device__ __forceinline__ void mbarrier_wait(uint32_t addr, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(addr),
      "r"(parity)
      : "memory");
}

// Products read shared memory by a way of their own. Each thread that wrote what they are to read,
// with stores or with copies it has waited for, fences it before the barrier.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- products of a warpgroup ----

template <int kColTiles>
__device__ __forceinline__ void hold(float (&registers)[kColTiles][4]) {
  FASTATTN_UNROLL
  for (int n = 0; n < kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(registers[n][i])::"memory");
  }
}
template <int kSteps>
__device__ __forceinline__ void hold(uint32_t (&registers)[kSteps][4]) {
  FASTATTN_UNROLL
  for (int k = 0; k < kSteps; ++k) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(registers[k][i])::"memory");
  }
}

// Before the first product of a group: it is to find what was written to these registers.
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (hold(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kPending groups are under way. `registers` are those of the groups waited for.
template <int kPending, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (hold(registers), ...);
}

// c (64, 8 * kColTiles) = a (64, 16) @ b (16, 8 * kColTiles), added to c if `accumulate`. Warp w of
// the warpgroup has rows 16 * w to 16 * w + 15 of a and c, in the layout of mma_m16n8k16. Factors
// in shared memory are named by descriptors (hopper/tile.cuh). A row of a, or a column of b, is
// contiguous there, or with kTransposed a column of a, or a row of b.
#define FASTATTN_TILE(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define FASTATTN_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FASTATTN_32 FASTATTN_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FASTATTN_16_TILES FASTATTN_TILE(0), FASTATTN_TILE(1), FASTATTN_TILE(2), FASTATTN_TILE(3)
#define FASTATTN_32_TILES \
  FASTATTN_16_TILES, FASTATTN_TILE(4), FASTATTN_TILE(5), FASTATTN_TILE(6), FASTATTN_TILE(7)

#define FASTATTN_WGMMA_RS(n, type, tiles, registers, a0, a1, a2, a3, b_, add, b_major)       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" add                                  \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers \
               "}, {%" a0 ",%" a1 ",%" a2 ",%" a3 "}, %" b_ ", add, 1, 1, %" b_major ";\n}"  \
               : tiles                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),   \
                 "n"(int{kTransposedB}))
#define FASTATTN_WGMMA_SS(n, type, tiles, registers, a_, b_, add, a_major, b_major)          \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" add                                  \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers \
               "}, %" a_ ", %" b_ ", add, 1, 1, %" a_major ", %" b_major ";\n}"              \
               : tiles                                                                       \
               : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposedA}),               \
                 "n"(int{kTransposedB}))

template <class T, bool kTransposedB, int kColTiles>
__device__ __forceinline__ void wgmma(float (&c)[kColTiles][4], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  static_assert(kColTiles == 4 || kColTiles == 8, "32 or 64 columns");
  constexpr bool kHalf = std::is_same_v<T, half_t>;
  if constexpr (kColTiles == 4 && kHalf) {
    FASTATTN_WGMMA_RS("32", "f16", FASTATTN_16_TILES, FASTATTN_16, "16", "17", "18", "19", "20",
                      "21", "22");
  } else if constexpr (kColTiles == 4) {
    FASTATTN_WGMMA_RS("32", "bf16", FASTATTN_16_TILES, FASTATTN_16, "16", "17", "18", "19", "20",
                      "21", "22");
  } else if constexpr (kHalf) {
    FASTATTN_WGMMA_RS("64", "f16", FASTATTN_32_TILES, FASTATTN_32, "32", "33", "34", "35", "36",
                      "37", "38");
  } else {
    FASTATTN_WGMMA_RS("64", "bf16", FASTATTN_32_TILES, FASTATTN_32, "32", "33", "34", "35", "36",
                      "37", "38");
  }
}

template <class T, bool kTransposedA, bool kTransposedB, int kColTiles>
__device__ __forceinline__ void wgmma(float (&c)[kColTiles][4], uint64_t a, uint64_t b,
                                      bool accumulate) {
  static_assert(kColTiles == 4 || kColTiles == 8, "32 or 64 columns");
  constexpr bool kHalf = std::is_same_v<T, half_t>;
  if constexpr (kColTiles == 4 && kHalf) {
    FASTATTN_WGMMA_SS("32", "f16", FASTATTN_16_TILES, FASTATTN_16, "16", "17", "18", "19", "20");
  } else if constexpr (kColTiles == 4) {
    FASTATTN_WGMMA_SS("32", "bf16", FASTATTN_16_TILES, FASTATTN_16, "16", "17", "18", "19", "20");
  } else if constexpr (kHalf) {
    FASTATTN_WGMMA_SS("64", "f16", FASTATTN_32_TILES, FASTATTN_32, "32", "33", "34", "35", "36");
  } else {
    FASTATTN_WGMMA_SS("64", "bf16", FASTATTN_32_TILES, FASTATTN_32, "32", "33", "34", "35", "36");
  }
}

#undef FASTATTN_TILE
#undef FASTATTN_16
#undef FASTATTN_32
#undef FASTATTN_16_TILES
#undef FASTATTN_32_TILES
#undef FASTATTN_WGMMA_RS
#undef FASTATTN_WGMMA_SS

}  // namespace fastattn::cuda
