// The softmax of 16 rows whose scores come in blocks of columns.
// Source: Dao, "FlashAttention-2", 2023, algorithm 1.
#pragma once

#include "cuda/mask.cuh"

namespace fastattn::cuda {

// Statistics of the two rows of a thread, in powers of two. The four lanes of a quad hold the same
// maximum, and each the sum of its own columns.
struct OnlineSoftmax {
  float row_max[2] = {-kInfinity, -kInfinity};
  float row_sum[2] = {0.0f, 0.0f};

  // Turns scores, still to be multiplied by a factor above 0, into weights 2^(s * factor - max),
  // and gives what was summed before the factor that it lacks since the maximum rose.
  template <int kColTiles>
  __device__ __forceinline__ void update(float (&s)[kColTiles][4], float factor,
                                         float (&rescale)[2]) {
    FASTATTN_UNROLL
    for (int half = 0; half < 2; ++half) {
      float tile_max = -kInfinity;
      FASTATTN_UNROLL
      for (int n = 0; n < kColTiles; ++n) {
        tile_max = fmaxf(tile_max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      }
      tile_max = fmaxf(tile_max, shfl_xor(tile_max, 1));
      tile_max = fmaxf(tile_max, shfl_xor(tile_max, 2));
      const float new_max = fmaxf(row_max[half], tile_max * factor);
      // Without a key so far: -inf - 0 is what -inf - -inf is not, a weight of 0.
      const float shift = new_max == -kInfinity ? 0.0f : new_max;
      rescale[half] = exp2_fast(row_max[half] - shift);
      row_max[half] = new_max;
      float sum = 0.0f;
      FASTATTN_UNROLL
      for (int n = 0; n < kColTiles; ++n) {
        FASTATTN_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = exp2_fast(s[n][i] * factor - shift);
          sum += s[n][i];
        }
      }
      row_sum[half] = row_sum[half] * rescale[half] + sum;
    }
  }

  // Adds up the columns of a quad. Afterwards `inverse` is 1 / sum, 0 for a row without a key.
  __device__ __forceinline__ void finish(float (&inverse)[2], float (&lse)[2]) {
    FASTATTN_UNROLL
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[half];
      sum += shfl_xor(sum, 1);
      sum += shfl_xor(sum, 2);
      const bool empty = row_max[half] == -kInfinity;
      inverse[half] = empty ? 0.0f : 1.0f / sum;
      lse[half] = empty ? -kInfinity : kLn2 * (row_max[half] + log2_fast(sum));
    }
  }
};

}  // namespace fastattn::cuda
