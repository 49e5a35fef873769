// Fused attention, forward, for Hopper. The mathematics is that of cuda/attention_fwd.cu.
//
// A block of two warpgroups owns 128 queries of one head of one sequence, 64 a warpgroup, or those
// of two heads, if these and the keys are 64 at most. They stay in registers as left factors. Keys
// stream by in blocks of 64, through two stages that all threads fill with cp.async: these leave
// out single rows and write zeros there, which the ends of sequences and padding need, as a weight
// of 0 does not undo a NaN, and which the copy engine (TMA) cannot do. Barriers in shared memory
// let one warpgroup be a block of keys ahead of the other. Up to head_dim 64 two blocks share an
// SM: while one warpgroup is at its softmax, three others have products to run. Above, products
// take twice as long beside the same softmax, and one other warpgroup is enough to hide it.
// Sources: Dao, "FlashAttention-2", 2023, algorithm 1; Shah et al., "FlashAttention-3", 2024.
#include "cuda/dropout.cuh"
#include "cuda/online_softmax.cuh"
#include "hopper/key_stream.cuh"
#include "hopper/work.cuh"

namespace fastattn::cuda {
namespace {

template <class Traits>
struct HopperForward {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 2 : 1;
  static constexpr int kBlockM = kNumGroups * kGroupRows;
  static constexpr int kBlockN = 64;
  using Stream = KeyStream<Traits, kBlockN>;
  using Items = Work<QueryTiles<kBlockM, /*kMayPair=*/true>>;
  using Queries = FactorTile<kHeadDim, kGroupRows>;  // of a warpgroup
  using KeyTile = typename Stream::Tile;
  // Keys; queries on their way in, and results out; the ring's barriers; the item of work.
  static constexpr uint32_t kQueries = Stream::kBytes;
  static constexpr uint32_t kRing = kQueries + kNumGroups * Queries::kBytes;
  static constexpr uint32_t kWork = kRing + Ring::kBytes;
  static constexpr uint32_t kSmemBytes = kWork + Items::kBytes;

  struct State {
    LeftPanels<kHeadDim> q;
    float acc[kHeadDim / 8][4];
    OnlineSoftmax softmax;
  };

  // The scores of the warp's 16 rows, from row0 on, with a block of keys, and what follows from
  // them.
  __device__ __forceinline__ static void attend(State& state, KeyTile k, KeyTile v,
                                                const ScoreRule<Traits>& rule,
                                                const Dropout& dropout, int row0,
                                                const KeyBlock<kBlockN>& keys) {
    float s[kBlockN / 8][4];
    wgmma_fence(s);
    issue_by_rows<T>(s, state.q, k);
    wgmma_commit();
    wgmma_wait<0>(s);
    float capped[kBlockN / 8][4];
    rule.apply(s, capped, ScorePlace<false>::of_tile(row0, keys.col0));
    mask_keys(s, keys.live);
    float rescale[2];
    state.softmax.update(s, rule.factor(), rescale);
    FASTATTN_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      FASTATTN_UNROLL
      for (int i = 0; i < 4; ++i) state.acc[n][i] *= rescale[i / 2];
    }
    uint32_t p[kBlockN / 16][4];
    FASTATTN_UNROLL
    for (int j = 0; j < kBlockN / 16; ++j) {
      if (Traits::kMayDrop && dropout.is_on()) {
        dropout.drop(s[2 * j], s[2 * j + 1], row0, keys.col0 + 16 * j);
      }
      pack_left<T>(p[j], s[2 * j], s[2 * j + 1]);
    }
    wgmma_fence(state.acc, p);
    issue_by_cols<T>(state.acc, p, v);
    wgmma_commit();
    wgmma_wait<0>(state.acc);
  }

  __device__ __forceinline__ static void store(State& state, const AttentionParams& params,
                                               const Sequence& sequence, int head, int row0,
                                               uint32_t smem) {
    float inverse[2], lse[2], scale[1][2];
    state.softmax.finish(inverse, lse);
    const float kept = Traits::kMayDrop ? keep_scale(params) : 1.0f;
    float* lse_rows = sequence.row_stats(params.lse, head);
    FASTATTN_UNROLL
    for (int half = 0; half < 2; ++half) {
      scale[0][half] = inverse[half] * kept;
      const int row = row0 + 8 * half + quad_row();
      if (quad_col() == 0 && row < sequence.seqlen_q) {
        stg(lse_rows + row * params.lse.row_stride, lse[half]);
      }
    }
    const int head_dim = static_cast<int>(params.head_dim);
    store_rows<Traits>(q_rows<Traits, T>(sequence, params.out, head, head_dim), row0,
                       sequence.seqlen_q, head_dim, smem,
                       reinterpret_cast<const float (&)[1][kHeadDim / 8][4]>(state.acc), scale);
  }

  __device__ __forceinline__ static Queries queries_of(uint32_t smem, int group) {
    return {smem + kQueries + group * Queries::kBytes};
  }

  // The results of a block's heads, from its query block_row on.
  template <class Heads>
  __device__ __forceinline__ static void run(const AttentionParams& params,
                                             const Sequence& sequence, const Heads& heads,
                                             int block_row, uint32_t smem, Ring ring) {
    const int head_dim = static_cast<int>(params.head_dim);
    const int group = group_idx(), head = heads.of(group);
    const ScoreRule<Traits> rule(params, sequence, head);
    const Dropout dropout(params, sequence, head);
    const Stream stream(params, sequence, heads.of(0), smem, ring);
    const auto keys = stream.first(rule, block_row, kBlockM);
    FASTATTN_UNROLL
    for (int i = 0; i < kNumGroups; ++i) {
      const int row0 = heads.row_of(i, block_row);
      copy_rows<Traits, kGroupRows>(
          queries_of(smem, i).addr,
          q_rows<Traits, const T>(sequence, params.q, heads.of(i), head_dim), row0, head_dim,
          [&](int step, int j) { return row0 + step + j < sequence.seqlen_q && keys.exists(); });
    }
    stream.copy(keys, 0);
    if constexpr (Heads::kPaired) {  // its second head's keys take the second stage
      if (heads.count() == 2) Stream(params, sequence, heads.of(1), smem, ring).copy(keys, 1);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_proxy_async();
    sync_threads();  // all of it has landed, and the barriers of the ring are there
    if (heads.is_idle(group)) return;

    State state{};
    const Queries queries = queries_of(smem, group);
    const int warp_row = warp_idx() % kGroupWarps * kFragmentRows;
    const int row0 = heads.warp_row(block_row);
    state.q.load(queries, warp_row);
    const auto meet = [&](const KeyBlock<kBlockN>& block, KeyTile k, KeyTile v) {
      attend(state, k, v, rule, dropout, row0, block);
    };
    if constexpr (Heads::kPaired) {
      stream.meet_own(keys, group, meet);
    } else {
      stream.for_each(keys, meet);
    }
    store(state, params, sequence, head, row0, queries.from_row(warp_row).addr);
  }
};

// Grid: that of Items.
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, HopperForward<Traits>::kBlocksPerSm)
    hopper_attention_fwd_kernel(const AttentionParams params) {
  run_item<HopperForward<Traits>>(params);
}

}  // namespace

void hopper_attention_fwd(const AttentionParams& params, void* stream) {
  dispatch_hopper(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using F = HopperForward<Chosen>;
    launch_checked("hopper_attention_fwd_kernel", &hopper_attention_fwd_kernel<Chosen>,
                   F::Items::grid(params), Chosen::kThreads, F::kSmemBytes, stream, params);
  });
}

}  // namespace fastattn::cuda
