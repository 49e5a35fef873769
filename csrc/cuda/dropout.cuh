// The dropout mask of a 16 x 16 tile of scores, by the rule of common/philox.h.
//
// A thread owns eight scores of a tile: those of a call of Philox, if rows are queries. In the
// transposed tiles of dk and dv it owns four of each of two calls, and its neighbour across
// lane ^ 4 owns the other four: each makes one of the calls, and they swap halves of the words.
#pragma once

#include "cuda/philox.cuh"
#include "cuda/seqlen.cuh"

namespace fastattn::cuda {

// Four words of draws: word 2 * i + j decides on accumulators 2 * i and 2 * i + 1 of the tile's
// column half j, the low half of a word on the first.
struct DropoutDraws {
  uint32_t words[4];

  // Whether accumulator i of column half j is kept. Comparing from the top bit on needs no mask.
  __device__ __forceinline__ bool keeps(int i, int j, uint32_t drop_threshold) const {
    const uint32_t word = words[2 * (i / 2) + j];
    return (i % 2 == 0 ? word << 16 : word) >= drop_threshold << 16;
  }
};

// What is kept of kTiles tiles side by side: bit 8 * k + 4 * j + i is for accumulator i of column
// half j of tile k. A register for 32 scores, where the draws take sixteen.
template <int kTiles>
struct KeptScores {
  static_assert(kTiles <= 4, "the bits of a word");
  uint32_t bits = ~0u;

  __device__ __forceinline__ bool keeps(int k, int j, int i) const {
    return (bits >> (8 * k + 4 * j + i) & 1) != 0;
  }
};

class Dropout {
 public:
  __device__ __forceinline__ Dropout(const AttentionParams& params, const Sequence& sequence,
                                     int head)
      : threshold_(params.drop_threshold),
        head_(static_cast<uint32_t>(head)),
        sequence_(static_cast<uint32_t>(sequence.index)) {
    if (threshold_ == 0) return;
    seed_ = params.seed_ptr == nullptr ? params.seed : static_cast<uint64_t>(ldg(params.seed_ptr));
  }

  __device__ __forceinline__ uint32_t threshold() const { return threshold_; }
  __device__ __forceinline__ bool is_on() const { return threshold_ != 0; }

  // The draws of the tile whose first score is (row0, col0). With kTransposed its rows are keys.
  template <bool kTransposed>
  __device__ __forceinline__ DropoutDraws draw(int row0, int col0) const {
    const uint32_t lane = thread_idx().x % kWarpSize;
    const uint32_t row_tile = row0 / philox::kTile, col_tile = col0 / philox::kTile;
    if constexpr (!kTransposed) return call(lane, row_tile, col_tile);
    // The thread's scores are in key g = lane / 4 of queries 2 * t and 2 * t + 1, t = lane % 4.
    // Keys g and g ^ 1 share the calls of both queries; an odd key makes the second query's.
    const bool odd = (lane / 4) % 2 != 0;
    const uint32_t query = 2 * (lane % 4) + odd;
    const DropoutDraws own = call(4 * query + lane / 8, row_tile, col_tile);
    DropoutDraws draws;
    FASTATTN_UNROLL
    for (int i = 0; i < 2; ++i) {  // words 2 * i and 2 * i + 1 are those of one half of queries
      const uint32_t low = (own.words[2 * i] & 0xFFFFu) | own.words[2 * i + 1] << 16;
      const uint32_t high = own.words[2 * i] >> 16 | (own.words[2 * i + 1] & 0xFFFF0000u);
      const uint32_t mine = odd ? high : low;
      const uint32_t theirs = shfl_xor(odd ? low : high, 4);
      const uint32_t first = odd ? theirs : mine, second = odd ? mine : theirs;
      draws.words[i] = (first & 0xFFFFu) | second << 16;          // key g, half i of queries
      draws.words[2 + i] = first >> 16 | (second & 0xFFFF0000u);  // key g + 8
    }
    return draws;
  }

  // Drops weights of two 16 x 8 tiles side by side, the first of which begins at (row0, col0).
  __device__ __forceinline__ void drop(float (&left)[4], float (&right)[4], int row0,
                                       int col0) const {
    const DropoutDraws draws = draw</*kTransposed=*/false>(row0, col0);
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (!draws.keeps(i, 0, threshold_)) left[i] = 0.0f;
      if (!draws.keeps(i, 1, threshold_)) right[i] = 0.0f;
    }
  }

  // Of kTiles tiles side by side, from (row0, col0) on: of neighbouring keys, or with kTransposed
  // of neighbouring queries. Everything, if dropout is off.
  template <bool kTransposed, int kTiles>
  __device__ __forceinline__ KeptScores<kTiles> kept(int row0, int col0) const {
    KeptScores<kTiles> scores;
    if (!is_on()) return scores;
    scores.bits = 0;
    FASTATTN_UNROLL
    for (int k = 0; k < kTiles; ++k) {
      const int next = philox::kTile * k;
      const DropoutDraws draws =
          draw<kTransposed>(kTransposed ? row0 + next : row0, kTransposed ? col0 : col0 + next);
      FASTATTN_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (draws.keeps(i % 4, i / 4, threshold_)) scores.bits |= 1u << (8 * k + i);
      }
    }
    return scores;
  }

 private:
  __device__ __forceinline__ DropoutDraws call(uint32_t lane, uint32_t row_tile,
                                               uint32_t col_tile) const {
    const PhiloxWords drawn =
        philox4x32(seed_, philox::kCallsPerTile * col_tile + lane, row_tile, head_, sequence_);
    return {{drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]}};
  }

  uint32_t threshold_, head_, sequence_;
  uint64_t seed_ = 0;
};

// What is kept is multiplied by this, as philox::keep_scale.
__device__ __forceinline__ float keep_scale(const AttentionParams& params) {
  return static_cast<float>(philox::kDraws) /
         static_cast<float>(philox::kDraws - params.drop_threshold);
}

}  // namespace fastattn::cuda
