// Four words of Philox4x32 on a GPU; csrc/common/philox.h says what they are used for.
#pragma once

#include "common/philox.h"
#include "cuda/device.cuh"

namespace fastattn::cuda {

struct PhiloxWords {
  uint32_t word[4];
};

__device__ __forceinline__ PhiloxWords philox4x32(uint64_t seed, uint32_t c0, uint32_t c1,
                                                  uint32_t c2, uint32_t c3) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  FASTATTN_UNROLL
  for (int round = 0; round < philox::kRounds; ++round) {
    const uint32_t high0 = umulhi(philox::kMultiplier0, c0), low0 = philox::kMultiplier0 * c0;
    const uint32_t high1 = umulhi(philox::kMultiplier1, c2), low1 = philox::kMultiplier1 * c2;
    c0 = high1 ^ c1 ^ key0, c1 = low1;
    c2 = high0 ^ c3 ^ key1, c3 = low0;
    key0 += philox::kKeyIncrement0, key1 += philox::kKeyIncrement1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fastattn::cuda
