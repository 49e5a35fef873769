// Attention, backward, for Hopper: dq, where it does not fit beside dk and dv.
//
//   s   = q @ k.T,  dp = dout @ v.T      64 queries of each warpgroup x 64 keys
//   dq += ds @ k                         in registers, times softmax_scale at the end
//
// Built as the forward kernel: a block of two warpgroups owns 128 queries of one head, and keys
// stream by. q and dout stay in shared memory: dq and the products take the registers.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#include "cuda/query_grad.cuh"
#include "hopper/key_stream.cuh"
#include "hopper/work.cuh"

namespace fastattn::cuda {
namespace {

template <class Traits>
struct HopperDq {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kBlockM = kNumGroups * kGroupRows;
  static constexpr int kBlockN = 64;
  using Stream = KeyStream<Traits, kBlockN>;
  using Items = Work<QueryTiles<kBlockM, /*kMayPair=*/false>>;
  using Queries = FactorTile<kHeadDim, kBlockM>;
  using KeyTile = typename Stream::Tile;
  // Keys; q, on whose place results go out, and dout; the ring's barriers; the item of work.
  static constexpr uint32_t kQueries = Stream::kBytes;
  static constexpr uint32_t kRing = kQueries + 2 * Queries::kBytes;
  static constexpr uint32_t kWork = kRing + Ring::kBytes;
  static constexpr uint32_t kSmemBytes = kWork + Items::kBytes;

  // What a block of keys gives to the warp's 16 queries, from row0 on. `q` and `dout` begin with
  // those of its warpgroup.
  __device__ __forceinline__ static void add(float (&dq)[kHeadDim / 8][4], Queries q, Queries dout,
                                             KeyTile k, KeyTile v, const ScoreGrad<Traits>& grad,
                                             const TileGrad<false>& stats, int row0,
                                             const KeyBlock<kBlockN>& keys) {
    float s[kBlockN / 8][4], dp[kBlockN / 8][4];
    wgmma_fence(s, dp);
    issue_by_rows<T>(s, q, k);
    issue_by_rows<T>(dp, dout, v);
    wgmma_commit();
    KeptScores<kBlockN / 16> kept;  // drawn while the products are under way
    if constexpr (Traits::kMayDrop) {
      kept = grad.dropout.template kept</*kTransposed=*/false, kBlockN / 16>(row0, keys.col0);
    }
    wgmma_wait<0>(s, dp);
    uint32_t ds[kBlockN / 16][4];
    FASTATTN_UNROLL
    for (int j = 0; j < kBlockN / 16; ++j) {
      float (&s_pair)[2][4] = reinterpret_cast<float (&)[2][4]>(s[2 * j]);
      float (&dp_pair)[2][4] = reinterpret_cast<float (&)[2][4]>(dp[2 * j]);
      float capped[2][4];
      grad.rule.apply(s_pair, capped, ScorePlace<false>::of_tile(row0, keys.col0 + 16 * j));
      mask_keys(s_pair, keys.live.from(16 * j));
      grad.compute(s_pair, dp_pair, capped, stats, /*before_softcap=*/true,
                   [&](int n, int i) { return kept.keeps(j, n, i); });
      pack_left<T>(ds[j], dp_pair[0], dp_pair[1]);
    }
    wgmma_fence(dq, ds);
    issue_by_cols<T>(dq, ds, k);
    wgmma_commit();
    wgmma_wait<0>(dq);
  }

  // dq of a head, from the block's first query on.
  __device__ __forceinline__ static void run(const AttentionBwdParams& params,
                                             const Sequence& sequence, const OneHead& heads,
                                             int block_row, uint32_t smem, Ring ring) {
    const int head = heads.head;
    const int head_dim = static_cast<int>(params.head_dim);
    const ScoreRule<Traits> rule(params, sequence, head);
    const Dropout dropout(params, sequence, head);
    const ScoreGrad<Traits> grad{rule, dropout, Traits::kMayDrop ? keep_scale(params) : 1.0f};
    const Stream stream(params, sequence, head, smem, ring);
    const Queries q{smem + kQueries}, dout{q.addr + Queries::kBytes};
    const auto keys = stream.first(rule, block_row, kBlockM);
    copy_queries<Traits, kBlockM>(q.addr, params, sequence, head, block_row,
                                  keys.exists() ? sequence.seqlen_q - block_row : 0);
    stream.copy(keys, 0);
    cp_async_commit();
    const int warp_row = warp_idx() * kFragmentRows;
    TileGrad<false> stats;
    FASTATTN_UNROLL
    for (int half = 0; half < 2; ++half) {
      stats.rows[half] =
          RowGrad::load(params, sequence, head, block_row + warp_row + 8 * half + quad_row());
    }
    cp_async_wait<0>();  // even if no keys come
    sync_threads();      // queries have landed; the ring's fence comes before their products

    float dq[kHeadDim / 8][4] = {};
    const int group_row = group_idx() * kGroupRows;
    stream.for_each(keys, [&](const KeyBlock<kBlockN>& block, KeyTile k, KeyTile v) {
      add(dq, q.from_row(group_row), dout.from_row(group_row), k, v, grad, stats,
          block_row + warp_row, block);
    });
    const float factor = static_cast<float>(params.softmax_scale);
    const float scale[1][2] = {{factor, factor}};
    sync_threads();  // nobody reads q any more
    store_rows<Traits>(q_rows<Traits, T>(sequence, params.dq, head, head_dim), block_row + warp_row,
                       sequence.seqlen_q, head_dim, q.from_row(warp_row).addr,
                       reinterpret_cast<const float (&)[1][kHeadDim / 8][4]>(dq), scale);
  }
};

// Grid: that of Items.
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    hopper_attention_dq_kernel(const AttentionBwdParams params) {
  run_item<HopperDq<Traits>>(params);
}

}  // namespace

void hopper_attention_dq(const AttentionBwdParams& params, void* stream) {
  dispatch_hopper(params, [&](auto traits) {
    using Chosen = decltype(traits);
    if constexpr (!Chosen::kKeepsDq) {
      using Q = HopperDq<Chosen>;
      launch_checked("hopper_attention_dq_kernel", &hopper_attention_dq_kernel<Chosen>,
                     Q::Items::grid(params), Chosen::kThreads, Q::kSmemBytes, stream, params);
    }
  });
}

}  // namespace fastattn::cuda
