// Attention, backward: dk and dv.
//
//   s.T  = k @ q.T,  dp.T = v @ dout.T   tiles of 16 keys x 16 queries in registers
//   dv  += (keep * p).T @ dout           times keep_scale at the end
//   dk  += ds.T @ q                      times softmax_scale at the end
//
// A block of 4 warps owns kBlockN keys of one key head, 16 or 32 rows a warp, as left factors in
// registers. The queries of every head that shares them stream by in blocks of kBlockM, two stages
// of q, dout, lse and delta in shared memory. Tiles are transposed: what a warp computes, keys by
// queries, is in the layout of the left factor of the next product, and never leaves registers.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#include "cuda/score_grad.cuh"

namespace fastattn::cuda {
namespace {

// Which queries meet the keys of a block: rows [first, end) of one head after the other.
struct QueryBlock {
  int head, end_head, row0, first, end;

  __device__ __forceinline__ bool exists() const { return head < end_head && first < end; }
  template <int kRows>
  __device__ __forceinline__ QueryBlock next() const {
    QueryBlock block = *this;
    block.row0 += kRows;
    if (block.row0 >= end) block.row0 = first, ++block.head;
    return block;
  }
};

template <class Traits>
struct KeyGrad {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kRowTiles = Traits::kDkdv.row_tiles;
  static constexpr int kBlockN = owned_rows(Traits::kDkdv);
  static constexpr int kBlockM = Traits::kDkdv.stream;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr uint32_t kRowBytes = SmemTile<kHeadDim>::kRowBytes;
  static constexpr uint32_t kTileBytes = kBlockM * kRowBytes;
  using Stats = SmemStats<kBlockM>;
  static constexpr uint32_t kStageBytes = 2 * kTileBytes;  // q and dout
  static constexpr uint32_t kKeyBytes = kBlockN * kRowBytes;
  // On their way to registers keys pass through what is later the second stage; those that stay in
  // shared memory lie behind it.
  static constexpr uint32_t kKeys = Traits::kHoldsLeft ? kStageBytes : 2 * kStageBytes;
  static constexpr uint32_t kValues = kKeys + kKeyBytes;
  static constexpr uint32_t kStats =
      kValues + kKeyBytes > 2 * kStageBytes ? kValues + kKeyBytes : 2 * kStageBytes;
  static constexpr uint32_t kSmemBytes = kStats + 2 * Stats::kBytes;
  static_assert(kBlockM <= Traits::kThreads, "a thread for each query's statistics");
  static_assert(kBlockN * kRowBytes <= kStats, "results leave through shared memory");

  struct State {
    LeftRows<kHeadDim, kRowTiles, Traits::kHoldsLeft> k, v;
    float dk[kRowTiles][kHeadDim / 8][4], dv[kRowTiles][kHeadDim / 8][4];
  };

  __device__ __forceinline__ static void copy_queries(uint32_t stage,
                                                      const AttentionBwdParams& params,
                                                      const Sequence& sequence,
                                                      const QueryBlock& block) {
    const int head_dim = static_cast<int>(params.head_dim);
    const auto is_live = [&](int step, int i) { return block.row0 + step + i < sequence.seqlen_q; };
    copy_rows<Traits, kBlockM>(stage,
                               q_rows<Traits, const T>(sequence, params.q, block.head, head_dim),
                               block.row0, head_dim, is_live);
    copy_rows<Traits, kBlockM>(stage + kTileBytes,
                               q_rows<Traits, const T>(sequence, params.dout, block.head, head_dim),
                               block.row0, head_dim, is_live);
  }

  // Each of the first kBlockM threads has one query's.
  __device__ __forceinline__ static RowGrad load_stats(const AttentionBwdParams& params,
                                                       const Sequence& sequence,
                                                       const QueryBlock& block) {
    const int i = thread_idx().x;
    if (i >= kBlockM || !block.exists()) return {};
    return RowGrad::load(params, sequence, block.head, block.row0 + i);
  }
  __device__ __forceinline__ static void store_stats(uint32_t smem, uint32_t stage,
                                                     const RowGrad& stats) {
    Stats::store(smem + kStats + stage * Stats::kBytes, thread_idx().x, stats);
  }

  // What `rows` queries, from row0 on, give to the warp's keys, from col0 on. Sixteen queries at a
  // time and no more at once: the results alone take half of a thread's registers.
  __device__ __forceinline__ static void meet(State& state, uint32_t smem, uint32_t stage,
                                              const ScoreGrad<Traits>& grad, int row0, int rows,
                                              int col0) {
    for (int row = 0; row < rows && row < kBlockM; row += 16) {
      const uint32_t q = smem + stage * kStageBytes + row * kRowBytes, dout = q + kTileBytes;
      float s[kRowTiles][2][4] = {}, dp[kRowTiles][2][4] = {};
      multiply_by_rows<T>(s, state.k, q);
      multiply_by_rows<T>(dp, state.v, dout);
      const TileGrad<true> stats = Stats::read(smem + kStats + stage * Stats::kBytes, row);
      uint32_t p[kRowTiles][1][4], ds[kRowTiles][1][4];
      FASTATTN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        const int tile_row = row0 + row, tile_col = col0 + 16 * m;
        float capped[2][4];
        grad.rule.apply(s[m], capped, ScorePlace<true>::of_tile(tile_row, tile_col));
        grad.compute(s[m], dp[m], capped, stats, tile_row, tile_col, /*before_softcap=*/true);
        pack_left<T>(p[m][0], s[m][0], s[m][1]);
        pack_left<T>(ds[m][0], dp[m][0], dp[m][1]);
      }
      multiply_by_cols<T, kHeadDim>(state.dv, p, dout);
      multiply_by_cols<T, kHeadDim>(state.dk, ds, q);
    }
  }

  // Which of the thread's keys are live: bit 2 * m + h for row h * 8 of row tile m.
  __device__ __forceinline__ static uint32_t find_live(const AttentionBwdParams& params,
                                                       const Sequence& sequence, int col0) {
    uint32_t live = 0;
    FASTATTN_UNROLL
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      live |= uint32_t{is_live_key(params, sequence, col0 + 8 * i + quad_row())} << i;
    }
    return live;
  }

  // A key that is padding has met any weights; its gradients are 0.
  __device__ __forceinline__ static void store(State& state, const AttentionBwdParams& params,
                                               const Sequence& sequence, int kv_head, int col0,
                                               uint32_t live, uint32_t smem) {
    const int head_dim = static_cast<int>(params.head_dim);
    const float dk_factor = static_cast<float>(params.softmax_scale);
    const float dv_factor = Traits::kMayDrop ? keep_scale(params) : 1.0f;
    float dk_scale[kRowTiles][2], dv_scale[kRowTiles][2];
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      FASTATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        dk_scale[m][half] = dk_factor, dv_scale[m][half] = dv_factor;
        if ((live >> (2 * m + half) & 1) != 0) continue;
        FASTATTN_UNROLL
        for (int n = 0; n < kHeadDim / 8; ++n) {
          state.dk[m][n][2 * half] = state.dk[m][n][2 * half + 1] = 0.0f;
          state.dv[m][n][2 * half] = state.dv[m][n][2 * half + 1] = 0.0f;
        }
      }
    }
    store_rows<Traits>(k_rows<Traits, T>(sequence, params.dk, kv_head, head_dim), col0,
                       sequence.seqlen_k, head_dim, smem, state.dk, dk_scale);
    store_rows<Traits>(k_rows<Traits, T>(sequence, params.dv, kv_head, head_dim), col0,
                       sequence.seqlen_k, head_dim, smem, state.dv, dv_scale);
  }
};

// Grid: (tiles of kBlockN keys of all sequences, num_heads_kv).
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    attention_dkdv_kernel(const AttentionBwdParams params) {
  using G = KeyGrad<Traits>;
  using T = typename Traits::T;
  const int kv_head = block_idx().y, head_dim = static_cast<int>(params.head_dim);
  const int group = static_cast<int>(params.num_heads / params.num_heads_kv);
  const TilePlace place =
      find_tile<G::kBlockN>(block_idx().x, params.cu_seqlens_k, static_cast<int>(params.batch_size),
                            static_cast<int>(params.seqlen_k));
  const Sequence sequence(params, place.sequence);
  const int col0 = place.row0;
  if (col0 >= sequence.seqlen_k) return;
  const auto live = LiveKeys<G::kBlockN>::find(params, sequence, col0);

  const ScoreRule<Traits> any_head(params, sequence, kv_head * group);
  QueryBlock block{kv_head * group, (kv_head + 1) * group, 0, any_head.first_row(col0),
                   any_head.end_row(col0, G::kBlockN)};
  block.first = block.first / G::kBlockM * G::kBlockM;
  // Keys behind the last sequence, and padding, meet no query.
  if (sequence.behind_last || !live.any()) block.end = block.first;
  block.row0 = block.first;

  const uint32_t smem = smem_base(), k_smem = smem + G::kKeys;
  const uint32_t v_smem = smem + G::kValues;
  const auto is_live = [&](int step, int i) { return block.exists() && live.test(step, i); };
  copy_rows<Traits, G::kBlockN>(k_smem,
                                k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim),
                                col0, head_dim, is_live);
  copy_rows<Traits, G::kBlockN>(v_smem,
                                k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim),
                                col0, head_dim, is_live);
  if (block.exists()) G::copy_queries(smem, params, sequence, block);
  cp_async_commit();
  G::store_stats(smem, 0, G::load_stats(params, sequence, block));

  typename G::State state{};
  const int warp_row = warp_idx() * G::kWarpRows;
  const uint32_t live_rows = G::find_live(params, sequence, col0 + warp_row);
  cp_async_wait<0>();
  sync_threads();
  state.k.load(k_smem, warp_row);
  state.v.load(v_smem, warp_row);
  for (uint32_t stage = 0; block.exists(); stage ^= 1) {
    cp_async_wait<0>();
    sync_threads();  // this stage has landed, and nobody reads the other one any more
    const QueryBlock next = block.next<G::kBlockM>();
    if (next.exists()) {
      G::copy_queries(smem + (stage ^ 1) * G::kStageBytes, params, sequence, next);
    }
    cp_async_commit();
    const RowGrad next_stats = G::load_stats(params, sequence, next);
    const ScoreRule<Traits> rule(params, sequence, block.head);
    const Dropout dropout(params, sequence, block.head);
    G::meet(state, smem, stage, {rule, dropout, keep_scale(params)}, block.row0,
            sequence.seqlen_q - block.row0, col0 + warp_row);
    G::store_stats(smem, stage ^ 1, next_stats);  // loaded before the products, needed after them
    block = next;
  }
  sync_threads();  // nobody reads a stage any more
  G::store(state, params, sequence, kv_head, col0 + warp_row, live_rows,
           smem + warp_row * G::kRowBytes);
}

}  // namespace

void attention_dkdv(const AttentionBwdParams& params, void* stream) {
  dispatch(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using G = KeyGrad<Chosen>;
    const int64_t tiles = count_tiles<G::kBlockN>(params.cu_seqlens_k != nullptr, params.batch_size,
                                                  params.seqlen_k, params.total_k);
    launch_checked("attention_dkdv_kernel", &attention_dkdv_kernel<Chosen>,
                   dim3(static_cast<uint32_t>(tiles), static_cast<uint32_t>(params.num_heads_kv)),
                   Chosen::kThreads, G::kSmemBytes, stream, params);
  });
}

}  // namespace fastattn::cuda
