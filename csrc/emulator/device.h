// The names of device.cuh on a CPU. What each does is said in cuda/ptx.cuh; every function takes,
// as a last argument nobody passes, the place in the source that calls it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/instructions.h"
#include "emulator/types.h"

#define __global__
#define __host__
#define __device__
// Left to the compiler: forcing it doubles the time to compile and wins nothing, as every memory
// access is a call anyway (attention_dkdv.cu 9.7 s instead of 5.1 s; AMD EPYC, 2026-11).
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define FASTATTN_KERNEL
#define FASTATTN_LAUNCH_BOUNDS(max_threads, min_blocks)
#define FASTATTN_UNROLL

namespace fastattn::cuda {

using emulator::Site;

constexpr uint32_t kFullWarp = 0xffffffffu;

// ---- where a thread is ----

inline uint3 thread_idx() { return emulator::thread_idx(); }
inline uint3 block_idx() { return emulator::block_idx(); }
inline dim3 block_dim() { return emulator::block_dim(); }
inline dim3 grid_dim() { return emulator::grid_dim(); }

// ---- memory ----

inline uint32_t smem_base() { return emulator::kSharedBase; }

// The hardware's widths: 1, 2, 4, 8 or 16 bytes.
template <class V>
constexpr uint32_t access_bytes() {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "no access has this width");
  static_assert(std::is_trivially_copyable_v<V>);
  return sizeof(V);
}

template <class V>
V lds(uint32_t addr, Site site = Site::here()) {
  V value;
  std::memcpy(&value, emulator::shared_read(addr, access_bytes<V>(), site), sizeof(V));
  return value;
}

template <class V>
void sts(uint32_t addr, V value, Site site = Site::here()) {
  std::memcpy(emulator::shared_write(addr, access_bytes<V>(), site), &value, sizeof(V));
}

template <class V>
V ldg(const V* src, Site site = Site::here()) {
  emulator::global_read(src, access_bytes<V>(), site);
  return *src;
}

template <class V>
void stg(V* dst, V value, Site site = Site::here()) {
  emulator::global_write(dst, access_bytes<V>(), site);
  *dst = value;
}

// ---- asynchronous copies, global to shared ----

inline void cp_async_16(uint32_t dst, const void* src, bool pred, Site site = Site::here()) {
  emulator::cp_async(dst, src, pred, site);
}

inline void cp_async_commit() { emulator::cp_async_commit(); }

template <int kPending>
void cp_async_wait() {
  emulator::cp_async_wait(kPending);
}

// ---- matrices ----

inline void ldmatrix_x4(uint32_t addr, uint32_t (&r)[4], Site site = Site::here()) {
  emulator::ldmatrix(addr, r, /*matrices=*/4, /*transposed=*/false, site);
}

inline void ldmatrix_x4_trans(uint32_t addr, uint32_t (&r)[4], Site site = Site::here()) {
  emulator::ldmatrix(addr, r, /*matrices=*/4, /*transposed=*/true, site);
}

inline void ldmatrix_x2(uint32_t addr, uint32_t (&r)[2], Site site = Site::here()) {
  emulator::ldmatrix(addr, r, /*matrices=*/2, /*transposed=*/false, site);
}

inline void ldmatrix_x2_trans(uint32_t addr, uint32_t (&r)[2], Site site = Site::here()) {
  emulator::ldmatrix(addr, r, /*matrices=*/2, /*transposed=*/true, site);
}

template <class T>
constexpr emulator::Element element_of() {
  static_assert(std::is_same_v<T, half_t> || std::is_same_v<T, bf16_t>);
  return std::is_same_v<T, half_t> ? emulator::Element::kHalf : emulator::Element::kBf16;
}

template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  Site site = Site::here()) {
  emulator::mma_m16n8k16(c, a, b0, b1, element_of<T>(), site);
}

// ---- numbers ----

inline float to_float(float x) { return x; }
inline float to_float(half_t x) { return emulator::float_of_half(x.bits); }
inline float to_float(bf16_t x) { return emulator::float_of_bf16(x.bits); }

template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, half_t>) {
    return {emulator::half_of_float(x)};
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return {emulator::bf16_of_float(x)};
  } else {
    return x;
  }
}

template <class T>
uint32_t pack2(float lo, float hi) {
  static_assert(sizeof(T) == 2);
  return from_float<T>(lo).bits | uint32_t{from_float<T>(hi).bits} << 16;
}

template <class T>
float2 unpack2(uint32_t word) {
  static_assert(sizeof(T) == 2);
  return {to_float(T{static_cast<uint16_t>(word)}), to_float(T{static_cast<uint16_t>(word >> 16)})};
}

inline float flush_denormal(float x) { return ::fabsf(x) < 0x1p-126f ? ::copysignf(0.0f, x) : x; }
inline float exp2_fast(float x) { return flush_denormal(::exp2f(x)); }
inline float log2_fast(float x) { return ::log2f(flush_denormal(x)); }
inline float tanh(float x) { return ::tanhf(x); }
inline float erff(float x) { return ::erff(x); }
inline uint32_t umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline int popcount(uint32_t bits) { return __builtin_popcount(bits); }

// ---- threads of a block and of a warp ----

inline void sync_threads(Site site = Site::here()) { emulator::sync_threads(site); }
inline void sync_warp(Site site = Site::here()) { emulator::sync_warp(site); }

inline void named_barrier_sync(int id, int num_threads, Site site = Site::here()) {
  emulator::named_barrier(id, num_threads, /*wait=*/true, site);
}

inline void named_barrier_arrive(int id, int num_threads, Site site = Site::here()) {
  emulator::named_barrier(id, num_threads, /*wait=*/false, site);
}

// A lane outside the warp: the hardware takes its number modulo 32.
template <class V>
V shfl(V value, int src_lane, Site site = Site::here()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = emulator::shuffle(bits, src_lane & 31, site);
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

template <class V>
V shfl_xor(V value, int lane_mask, Site site = Site::here()) {
  return shfl(value, emulator::lane() ^ lane_mask, site);
}

// The last `delta` lanes keep their own value.
template <class V>
V shfl_down(V value, int delta, Site site = Site::here()) {
  const int lane = emulator::lane();
  return shfl(value, lane + delta < 32 ? lane + delta : lane, site);
}

inline uint32_t ballot(bool predicate, Site site = Site::here()) {
  return emulator::ballot(predicate, site);
}

// ---- launches ----

// Runs the grid before it returns. A finding about the kernel is thrown, as emulator::Finding.
template <class Params>
const char* launch(void (*kernel)(Params), dim3 grid, dim3 block, uint32_t smem_bytes,
                   void* /*stream*/, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  const Call call{kernel, params};
  emulator::launch(
      grid, block, smem_bytes,
      [](const void* argument) {
        const Call& call = *static_cast<const Call*>(argument);
        call.kernel(call.params);
      },
      &call);
  return nullptr;
}

}  // namespace fastattn::cuda
