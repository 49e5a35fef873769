// The names of hopper/device.cuh on a CPU. What each does is said in hopper/ptx.cuh.
#pragma once

#include "emulator/device.h"

namespace fastattn::cuda {

// ---- barriers in shared memory ----

inline void mbarrier_init(uint32_t addr, uint32_t count, Site site = Site::here()) {
  emulator::mbarrier_init(addr, count, site);
}

inline void mbarrier_arrive(uint32_t addr, Site site = Site::here()) {
  emulator::mbarrier_arrive(addr, site);
}

inline void mbarrier_wait(uint32_t addr, uint32_t parity, Site site = Site::here()) {
  emulator::mbarrier_wait(addr, parity, site);
}

inline void fence_proxy_async() { emulator::fence_proxy_async(); }

// ---- products of a warpgroup ----

// The emulator need not be told of registers: it keeps results back until they are waited for.
template <class A>
void wgmma_fence(A&, Site site = Site::here()) {
  emulator::wgmma_fence(site);
}
template <class A, class B>
void wgmma_fence(A&, B&, Site site = Site::here()) {
  emulator::wgmma_fence(site);
}
template <class A, class B, class C, class D>
void wgmma_fence(A&, B&, C&, D&, Site site = Site::here()) {
  emulator::wgmma_fence(site);
}

inline void wgmma_commit(Site site = Site::here()) { emulator::wgmma_commit(site); }

template <int kPending, class A>
void wgmma_wait(A&, Site site = Site::here()) {
  emulator::wgmma_wait(kPending, site);
}
template <int kPending, class A, class B>
void wgmma_wait(A&, B&, Site site = Site::here()) {
  emulator::wgmma_wait(kPending, site);
}
template <int kPending, class A, class B, class C, class D>
void wgmma_wait(A&, B&, C&, D&, Site site = Site::here()) {
  emulator::wgmma_wait(kPending, site);
}

template <class T, bool kTransposedB, int kColTiles>
void wgmma(float (&c)[kColTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate,
           Site site = Site::here()) {
  const emulator::Product product{element_of<T>(), kColTiles,  true, false,
                                  kTransposedB,    accumulate, 0,    b};
  emulator::wgmma(&c[0][0], a, product, site);
}

template <class T, bool kTransposedA, bool kTransposedB, int kColTiles>
void wgmma(float (&c)[kColTiles][4], uint64_t a, uint64_t b, bool accumulate,
           Site site = Site::here()) {
  const emulator::Product product{element_of<T>(), kColTiles,  false, kTransposedA,
                                  kTransposedB,    accumulate, a,     b};
  emulator::wgmma(&c[0][0], nullptr, product, site);
}

}  // namespace fastattn::cuda
