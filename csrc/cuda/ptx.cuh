// The names of device.cuh on a GPU, and the only file that knows PTX. sm_75 (Turing) lacks cp.async
// and the m16n8k16 product; the same names do their work there in other instructions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#define FASTATTN_KERNEL __global__
#define FASTATTN_LAUNCH_BOUNDS(max_threads, min_blocks) __launch_bounds__(max_threads, min_blocks)
#define FASTATTN_UNROLL _Pragma("unroll")

namespace fastattn::cuda {

using half_t = __half;
using bf16_t = __nv_bfloat16;

constexpr uint32_t kFullWarp = 0xffffffffu;

// 1024 bytes: the period of the widest swizzle, so that a tile's swizzle depends on its row alone.
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

// ---- where a thread is ----

__device__ __forceinline__ uint3 thread_idx() { return threadIdx; }
__device__ __forceinline__ uint3 block_idx() { return blockIdx; }
__device__ __forceinline__ dim3 block_dim() { return blockDim; }
__device__ __forceinline__ dim3 grid_dim() { return gridDim; }

// ---- memory ----

__device__ __forceinline__ uint32_t smem_base() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared_memory));
}

template <class V>
__device__ __forceinline__ V lds(uint32_t addr) {
  return *static_cast<const V*>(__cvta_shared_to_generic(addr));
}

template <class V>
__device__ __forceinline__ void sts(uint32_t addr, V value) {
  *static_cast<V*>(__cvta_shared_to_generic(addr)) = value;
}

// Reads what no thread writes during the launch: the read-only path of the cache is not coherent.
template <class V>
__device__ __forceinline__ V ldg(const V* src) {
  return __ldg(src);
}

template <class V>
__device__ __forceinline__ void stg(V* dst, V value) {
  *dst = value;
}

// ---- asynchronous copies, global to shared ----

// Copies 16 bytes, or writes 16 zero bytes and reads nothing when !pred; src must be aligned then
// too.
__device__ __forceinline__ void cp_async_16(uint32_t dst, const void* src, bool pred) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst),
               "l"(__cvta_generic_to_global(src)), "r"(pred ? 16 : 0)
               : "memory");
#else
  sts(dst, pred ? ldg(static_cast<const uint4*>(src)) : uint4{0, 0, 0, 0});
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- matrices ----

// Lane l gives the address of row l % 8 of matrix l / 8; each matrix is 8 x 8 of 16 bits. Lane l
// gets of matrix i, in r[i], columns 2 * (l % 4) + {0, 1} of row l / 4 (of the transpose, for
// _trans). The addresses of lanes 16 to 31 are ignored by x2.
__device__ __forceinline__ void ldmatrix_x4(uint32_t addr, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t addr, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t addr, uint32_t (&r)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t addr, uint32_t (&r)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}

#define FASTATTN_MMA_M16N8K16(type)                                                   \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

#define FASTATTN_MMA_M16N8K8_F16(a0, a1, b)                 \
  asm volatile(                                             \
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "   \
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])      \
      : "r"(a0), "r"(a1), "r"(b))

// c (16, 8) += a (16, 16) @ b (16, 8) over a warp. With g = lane / 4 and t = lane % 4, and two
// neighbouring columns of a, or rows of b, in a word:
//   a[0..3]: rows g, g + 8, g, g + 8, columns 2t, 2t, 2t + 8, 2t + 8
//   b0, b1:  column g, rows 2t, 2t + 8
//   c[0..3]: rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, half_t>) {
    FASTATTN_MMA_M16N8K16("f16");
  } else {
    FASTATTN_MMA_M16N8K16("bf16");
  }
#else
  if constexpr (std::is_same_v<T, half_t>) {
    FASTATTN_MMA_M16N8K8_F16(a[0], a[1], b0);
    FASTATTN_MMA_M16N8K8_F16(a[2], a[3], b1);
  } else {
    __trap();  // Turing has no bfloat16 product; the host refuses such a call
  }
#endif
}

#undef FASTATTN_MMA_M16N8K16
#undef FASTATTN_MMA_M16N8K8_F16

// ---- numbers ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, half_t>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Two 16-bit numbers in a word, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi) {
  if constexpr (std::is_same_v<T, half_t>) {
    const __half2 pair = __floats2half2_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t word) {
  if constexpr (std::is_same_v<T, half_t>) {
    return __half22float2(reinterpret_cast<const __half2&>(word));
  } else {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(word));
  }
}

// The special function unit: relative error 2^-22 (PTX ISA, ex2.approx and lg2.approx); denormals
// become 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float tanh(float x) { return ::tanhf(x); }
__device__ __forceinline__ float erff(float x) { return ::erff(x); }
__device__ __forceinline__ uint32_t umulhi(uint32_t a, uint32_t b) { return __umulhi(a, b); }
__device__ __forceinline__ int popcount(uint32_t bits) { return __popc(bits); }

// ---- threads of a block and of a warp; the warp's functions are called by all of its lanes ----

__device__ __forceinline__ void sync_threads() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Barriers 1 to 15, for num_threads threads (whole warps) of the block; barrier 0 is sync_threads'.
__device__ __forceinline__ void named_barrier_sync(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

template <class V>
__device__ __forceinline__ V shfl_xor(V value, int lane_mask) {
  return __shfl_xor_sync(kFullWarp, value, lane_mask);
}

template <class V>
__device__ __forceinline__ V shfl(V value, int src_lane) {
  return __shfl_sync(kFullWarp, value, src_lane);
}

template <class V>
__device__ __forceinline__ V shfl_down(V value, int delta) {
  return __shfl_down_sync(kFullWarp, value, delta);
}

__device__ __forceinline__ uint32_t ballot(bool predicate) {
  return __ballot_sync(kFullWarp, predicate);
}

// ---- launches ----

// Starts kernel(params) on `stream`. Returns nullptr, or what the CUDA runtime says is wrong.
template <class Params>
const char* launch(void (*kernel)(Params), dim3 grid, dim3 block, uint32_t smem_bytes, void* stream,
                   const Params& params) {
  constexpr uint32_t kWithoutAsking = 48 * 1024;
  if (smem_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(smem_bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<grid, block, smem_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastattn::cuda
