// Fused attention, forward, for Hopper. The mathematics is that of cuda/attention_fwd.cu.
//
// A block of two warpgroups owns 128 queries of one head of one sequence, 64 a warpgroup, which
// stay in registers as left factors. Keys stream by in blocks of 64, through two stages that all
// threads fill with cp.async: these leave out single rows and write zeros there, which the ends of
// sequences and padding need, as a weight of 0 does not undo a NaN, and which the copy engine (TMA)
// cannot do. Barriers in shared memory let one warpgroup be a block of keys ahead of the other. Up
// to head_dim 64 two blocks share an SM: while one warpgroup is at its softmax, three others have
// products to run. Above, products take twice as long beside the same softmax, and one other
// warpgroup is enough to hide it.
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
  using Items = Work<QueryTiles<kBlockM>>;
  using Queries = FactorTile<kHeadDim, kBlockM>;
  using KeyTile = typename Stream::Tile;
  // Keys; queries on their way in, and results out; the ring's barriers; the item of work.
  static constexpr uint32_t kQueries = Stream::kBytes;
  static constexpr uint32_t kRing = kQueries + Queries::kBytes;
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

  __device__ __forceinline__ static void run(const AttentionParams& params, const WorkItem& item,
                                             uint32_t smem, Ring ring) {
    const Sequence sequence(params, item.sequence);
    if (item.row0 >= sequence.seqlen_q) return;
    const int head_dim = static_cast<int>(params.head_dim);
    const ScoreRule<Traits> rule(params, sequence, item.head);
    const Dropout dropout(params, sequence, item.head);
    const Stream stream(params, sequence, item.head, smem, ring);
    const Queries queries{smem + kQueries};
    const auto keys = stream.first(rule, item.row0, kBlockM);
    copy_rows<Traits, kBlockM>(
        queries.addr, q_rows<Traits, const T>(sequence, params.q, item.head, head_dim), item.row0,
        head_dim,
        [&](int step, int i) { return item.row0 + step + i < sequence.seqlen_q && keys.exists(); });
    stream.copy(keys, 0);
    cp_async_commit();
    cp_async_wait<0>();
    sync_threads();  // queries have landed, and the barriers of the ring are there

    State state{};
    const int warp_row = warp_idx() * kFragmentRows;
    state.q.load(queries, warp_row);
    stream.for_each(keys, [&](const KeyBlock<kBlockN>& block, KeyTile k, KeyTile v) {
      attend(state, k, v, rule, dropout, item.row0 + warp_row, block);
    });
    store(state, params, sequence, item.head, item.row0 + warp_row,
          queries.from_row(warp_row).addr);
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
