// What the kernels of dq and of dbias share: queries in the registers of a warp, and the gradients
// of their scores with keys in shared memory.
#pragma once

#include "cuda/score_grad.cuh"

namespace fastattn::cuda {

// Starts the copies of q and dout of kRows queries from row0 on, zeros from live_rows on.
template <class Traits, int kRows>
__device__ __forceinline__ void copy_queries(uint32_t smem, const AttentionBwdParams& params,
                                             const Sequence& sequence, int head, int row0,
                                             int live_rows) {
  using T = typename Traits::T;
  const int head_dim = static_cast<int>(params.head_dim);
  const auto is_live = [&](int step, int i) { return step + i < live_rows; };
  copy_rows<Traits, kRows>(smem, q_rows<Traits, const T>(sequence, params.q, head, head_dim), row0,
                           head_dim, is_live);
  copy_rows<Traits, kRows>(smem + kRows * SmemTile<Traits::kHeadDim>::kRowBytes,
                           q_rows<Traits, const T>(sequence, params.dout, head, head_dim), row0,
                           head_dim, is_live);
}

// A warp's 16 * kRowTiles queries.
template <class Traits, int kRowTiles>
struct QueryFragments {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  LeftRows<kHeadDim, kRowTiles, Traits::kHoldsLeft> q, dout;
  TileGrad<false> stats[kRowTiles];

  __device__ __forceinline__ void load_stats(const AttentionBwdParams& params,
                                             const Sequence& sequence, int head, int row0) {
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      FASTATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 16 * m + 8 * half + quad_row();
        stats[m].rows[half] = RowGrad::load(params, sequence, head, row);
      }
    }
  }

  // From tiles of q and of dout, tile_bytes apart, whose row `row` is the warp's first.
  __device__ __forceinline__ void load_rows(uint32_t smem, uint32_t tile_bytes, int row) {
    q.load(smem, row);
    dout.load(smem + tile_bytes, row);
  }

  // ds of the queries, from row0 on, and 16 keys from column `col` of a block on.
  template <int kBlockN>
  __device__ __forceinline__ void score_grads(float (&ds)[kRowTiles][2][4], uint32_t k_smem,
                                              uint32_t v_smem, const ScoreGrad<Traits>& grad,
                                              int row0, const KeyBlock<kBlockN>& keys, int col,
                                              bool before_softcap) const {
    float s[kRowTiles][2][4] = {};
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      FASTATTN_UNROLL
      for (int i = 0; i < 8; ++i) ds[m][i / 4][i % 4] = 0.0f;
    }
    multiply_by_rows<T>(s, q, k_smem + col * SmemTile<kHeadDim>::kRowBytes);
    multiply_by_rows<T>(ds, dout, v_smem + col * SmemTile<kHeadDim>::kRowBytes);
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const int tile_row = row0 + 16 * m, tile_col = keys.col0 + col;
      float capped[2][4];
      grad.rule.apply(s[m], capped, ScorePlace<false>::of_tile(tile_row, tile_col));
      mask_keys(s[m], keys.live.from(col));
      grad.compute(s[m], ds[m], capped, stats[m], tile_row, tile_col, before_softcap);
    }
  }
};

}  // namespace fastattn::cuda
