// What the functions of device.h do, without their types. Every function works on the emulated
// thread that calls it, and ends the launch with a finding if the kernel did something wrong.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/site.h"
#include "emulator/types.h"

namespace fastattn::emulator {

enum class Element { kHalf, kBf16 };

// Addresses that kernels see start here, so that a forgotten smem_base() is out of bounds.
constexpr uint32_t kSharedBase = 1024;

cuda::uint3 thread_idx();
cuda::uint3 block_idx();
cuda::dim3 block_dim();
cuda::dim3 grid_dim();

// Check an access and count it; the caller then reads or writes the bytes themselves.
const void* shared_read(uint32_t addr, uint32_t bytes, Site site);
void* shared_write(uint32_t addr, uint32_t bytes, Site site);
void global_read(const void* src, uint32_t bytes, Site site);
void global_write(void* dst, uint32_t bytes, Site site);

void cp_async(uint32_t dst, const void* src, bool pred, Site site);
void cp_async_commit();
void cp_async_wait(int pending);

// Executed when the last lane of the warp arrives.
void sync_warp(Site site);
uint64_t shuffle(uint64_t value, int src_lane, Site site);
uint32_t ballot(bool predicate, Site site);
void ldmatrix(uint32_t addr, uint32_t* r, int matrices, bool transposed, Site site);
void mma_m16n8k16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, Element element,
                  Site site);
int lane();

// Barriers in shared memory: one lane makes one or arrives, a whole warp waits.
void mbarrier_init(uint32_t addr, uint32_t count, Site site);
void mbarrier_arrive(uint32_t addr, Site site);
void mbarrier_wait(uint32_t addr, uint32_t parity, Site site);

// A product of a warpgroup, 64 x 8 * col_tiles x 16. Descriptors are the hardware's.
struct Product {
  Element element;
  int col_tiles;
  bool in_registers;  // the left factor
  bool a_transposed, b_transposed, accumulate;
  uint64_t a_descriptor, b_descriptor;
};
void fence_proxy_async();
void wgmma(float* c, const uint32_t* a, const Product& product, Site site);
void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int pending, Site site);

void sync_threads(Site site);
void named_barrier(int id, int num_threads, bool wait, Site site);

// Runs `body(argument)` for every thread of the grid.
void launch(cuda::dim3 grid, cuda::dim3 block, uint32_t smem_bytes, void (*body)(const void*),
            const void* argument);

}  // namespace fastattn::emulator
