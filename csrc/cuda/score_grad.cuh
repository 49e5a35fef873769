// One 16 x 16 tile of the backward pass, recomputed from q, k, v, dout, lse and delta:
//
//   p  = 2^(s2 - log2(e) * lse)
//   dp = keep * keep_scale * (dout @ v.T)
//   ds = p * (dp - delta)                gradient of the scores with bias
//   ds = ds * (1 - tanh^2)               with a softcap: gradient of softmax_scale * q @ k.T
//
// It needs nothing from the rest of its row, so a warp takes 16 rows of the other side at a time,
// and the few registers of a tile are all that waits between its two kinds of products.
#pragma once

#include "cuda/attention_traits.cuh"
#include "cuda/dropout.cuh"
#include "cuda/mask.cuh"

namespace fastattn::cuda {

// The launches of attention_bwd, each after the one before.
void attention_delta(const AttentionBwdParams& params, void* stream);
void attention_dkdv(const AttentionBwdParams& params, void* stream);
void attention_dq(const AttentionBwdParams& params, void* stream);
void attention_dbias(const AttentionBwdParams& params, void* stream);

// lse and delta of a query. A row that sees no key, or is past the end, has lse2 = inf: its
// weights are 0, and nothing of it reaches a gradient.
struct RowGrad {
  float lse2 = kInfinity, delta = 0.0f;

  __device__ __forceinline__ static RowGrad load(const AttentionBwdParams& params,
                                                 const Sequence& sequence, int head, int row) {
    RowGrad stats;
    if (row >= sequence.seqlen_q) return stats;
    const float lse = ldg(sequence.row_stats(params.lse, head) + row * params.lse.row_stride);
    if (lse == -kInfinity) return stats;
    stats.lse2 = lse * kLog2E;
    stats.delta = ldg(sequence.row_stats(params.delta, head) + row * params.delta.row_stride);
    return stats;
  }
};

// The statistics that a thread's accumulators of a tile need: of its rows, or with kTransposed of
// its columns.
template <bool kTransposed>
struct TileGrad {
  RowGrad rows[kTransposed ? 4 : 2];
  __device__ __forceinline__ const RowGrad& of(int n, int i) const {
    return rows[kTransposed ? 2 * n + i % 2 : i / 2];
  }
};

// Those of kRows queries in shared memory, for tiles whose columns are queries.
template <int kRows>
struct SmemStats {
  static constexpr uint32_t kHalf = kRows * sizeof(float);
  static constexpr uint32_t kBytes = 2 * kHalf;

  // Query i has these; a thread without a query says so by an i from kRows on.
  __device__ __forceinline__ static void store(uint32_t smem, uint32_t i, const RowGrad& stats) {
    if (i >= kRows) return;
    sts(smem + i * static_cast<uint32_t>(sizeof(float)), stats.lse2);
    sts(smem + kHalf + i * static_cast<uint32_t>(sizeof(float)), stats.delta);
  }
  // Those of the thread's queries among the 16 from row on.
  __device__ __forceinline__ static TileGrad<true> read(uint32_t smem, int row) {
    TileGrad<true> tile;
    FASTATTN_UNROLL
    for (int n = 0; n < 2; ++n) {
      const uint32_t lse2 =
          smem + (row + 8 * n + quad_col()) * static_cast<uint32_t>(sizeof(float));
      const float2 x = lds<float2>(lse2), y = lds<float2>(lse2 + kHalf);
      tile.rows[2 * n].lse2 = x.x, tile.rows[2 * n].delta = y.x;
      tile.rows[2 * n + 1].lse2 = x.y, tile.rows[2 * n + 1].delta = y.y;
    }
    return tile;
  }
};

template <class Traits>
struct ScoreGrad {
  const ScoreRule<Traits>& rule;
  const Dropout& dropout;
  float keep_scale;

  // s: scores of two 16 x 8 tiles, becomes keep * p. dp: dout @ v.T, becomes ds. `capped` is of
  // ScoreRule::apply. (row0, col0) is the tile's first score.
  template <bool kTransposed>
  __device__ __forceinline__ void compute(float (&s)[2][4], float (&dp)[2][4],
                                          const float (&capped)[2][4],
                                          const TileGrad<kTransposed>& stats, int row0, int col0,
                                          bool before_softcap) const {
    const bool drops = Traits::kMayDrop && dropout.is_on();
    DropoutDraws draws{};
    if (drops) draws = dropout.template draw<kTransposed>(row0, col0);
    compute(s, dp, capped, stats, before_softcap,
            [&](int n, int i) { return !drops || draws.keeps(i, n, dropout.threshold()); });
  }

  // The same, where keeps(n, i) says whether accumulator i of column half n is kept.
  template <bool kTransposed, class Keeps>
  __device__ __forceinline__ void compute(float (&s)[2][4], float (&dp)[2][4],
                                          const float (&capped)[2][4],
                                          const TileGrad<kTransposed>& stats, bool before_softcap,
                                          const Keeps& keeps) const {
    const bool scales = Traits::kMayDrop && dropout.is_on();
    FASTATTN_UNROLL
    for (int n = 0; n < 2; ++n) {
      FASTATTN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const RowGrad& row = stats.of(n, i);
        const float p = rule.weight(s[n][i], row.lse2);
        const bool keep = keeps(n, i);
        const float kept_dp = scales ? (keep ? dp[n][i] * keep_scale : 0.0f) : dp[n][i];
        s[n][i] = keep ? p : 0.0f;
        dp[n][i] = p * (kept_dp - row.delta);
        if (before_softcap && rule.has_softcap()) dp[n][i] *= 1.0f - capped[n][i] * capped[n][i];
      }
    }
  }
};

}  // namespace fastattn::cuda
