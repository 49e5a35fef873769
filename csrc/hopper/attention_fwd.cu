// Fused attention, forward, for Hopper. The mathematics is that of cuda/attention_fwd.cu.
//
// A block of two warpgroups owns 128 queries of one head of one sequence, 64 a warpgroup, which
// stay in registers as left factors. Keys stream by in blocks of 64, through two stages that all
// threads fill with cp.async: these leave out single rows and write zeros there, which the ends of
// sequences and padding need, as a weight of 0 does not undo a NaN, and which the copy engine (TMA)
// cannot do. Barriers in shared memory let one warpgroup be a block of keys ahead of the other. Two
// blocks share an SM: while one warpgroup is at its softmax, three others have products to run.
// Sources: Dao, "FlashAttention-2", 2023, algorithm 1; Shah et al., "FlashAttention-3", 2024.
#include "cuda/dropout.cuh"
#include "cuda/online_softmax.cuh"
#include "hopper/tile.cuh"

namespace fastattn::cuda {
namespace {

template <class Traits>
struct HopperForward {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kBlockM = kNumGroups * kGroupRows;
  static constexpr int kBlockN = 64;
  static constexpr uint32_t kRowBytes = SmemTile<kHeadDim>::kRowBytes;
  static constexpr uint32_t kTileBytes = kBlockN * kRowBytes;
  static constexpr uint32_t kStageBytes = 2 * kTileBytes;  // k and v
  static constexpr uint32_t kQueries = 2 * kStageBytes;    // on their way in, and results out
  static constexpr uint32_t kRing = kQueries + kBlockM * kRowBytes;
  static constexpr uint32_t kSmemBytes = kRing + Ring::kBytes;
  static_assert(kTileBytes % kTileAlignment == 0, "tiles begin where swizzles do");

  struct State {
    LeftRows<kHeadDim, 1, /*kHeld=*/true> q;
    float acc[kHeadDim / 8][4];
    OnlineSoftmax softmax;
  };

  // The scores of the warp's 16 rows, from row0 on, with a block of keys, and what follows from
  // them.
  __device__ __forceinline__ static void attend(State& state, uint32_t stage,
                                                const ScoreRule<Traits>& rule,
                                                const Dropout& dropout, int row0,
                                                const KeyBlock<kBlockN>& keys) {
    float s[kBlockN / 8][4];
    wgmma_fence(s);
    issue_by_rows<T>(s, state.q, stage);
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
    for (int k = 0; k < kBlockN / 16; ++k) {
      if (Traits::kMayDrop && dropout.is_on()) {
        dropout.drop(s[2 * k], s[2 * k + 1], row0, keys.col0 + 16 * k);
      }
      pack_left<T>(p[k], s[2 * k], s[2 * k + 1]);
    }
    wgmma_fence(state.acc, p);
    issue_by_cols<T>(state.acc, p, stage + kTileBytes);
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
};

// Grid: (tiles of kBlockM queries of all sequences, num_heads).
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 2)
    hopper_attention_fwd_kernel(const AttentionParams params) {
  using F = HopperForward<Traits>;
  using T = typename Traits::T;
  constexpr int kBlockM = F::kBlockM, kBlockN = F::kBlockN;
  const int head = block_idx().y, head_dim = static_cast<int>(params.head_dim);
  const int kv_head = head / static_cast<int>(params.num_heads / params.num_heads_kv);
  const TilePlace place =
      find_tile<kBlockM>(block_idx().x, params.cu_seqlens_q, static_cast<int>(params.batch_size),
                         static_cast<int>(params.seqlen_q));
  const Sequence sequence(params, place.sequence);
  if (place.row0 >= sequence.seqlen_q) return;
  const ScoreRule<Traits> rule(params, sequence, head);
  const Dropout dropout(params, sequence, head);
  const GlobalRows<const T> q = q_rows<Traits, const T>(sequence, params.q, head, head_dim);
  const GlobalRows<const T> k = k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim);
  const GlobalRows<const T> v = k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim);

  const uint32_t smem = smem_base(), q_smem = smem + F::kQueries;
  const Ring ring(smem + F::kRing);
  ring.init(Traits::kThreads / kWarpSize);
  // Rows behind the last sequence see no key.
  const int end = sequence.behind_last ? 0 : rule.end_col(place.row0, kBlockM);
  auto keys = KeyBlock<kBlockN>::find(params, sequence, rule.first_col(place.row0), end);
  copy_rows<Traits, kBlockM>(q_smem, q, place.row0, head_dim, [&](int step, int i) {
    return place.row0 + step + i < sequence.seqlen_q && keys.exists();
  });
  if (keys.exists()) copy_keys<Traits>(smem, k, v, head_dim, keys);
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads();  // queries have landed, and the barriers of the ring are there

  typename F::State state{};
  const int warp_row = warp_idx() * kFragmentRows;
  state.q.load(q_smem, warp_row);
  for (uint32_t n = 0; keys.exists(); ++n) {
    const auto next = keys.next(params, sequence);
    if (next.exists()) {
      ring.wait_until_empty(n + 1);
      copy_keys<Traits>(smem + (n + 1) % 2 * F::kStageBytes, k, v, head_dim, next);
    }
    cp_async_commit();
    cp_async_wait<1>();
    ring.filled(n);
    ring.wait_until_full(n);
    F::attend(state, smem + n % 2 * F::kStageBytes, rule, dropout, place.row0 + warp_row, keys);
    ring.emptied(n);
    keys = next;
  }
  F::store(state, params, sequence, head, place.row0 + warp_row, q_smem + warp_row * F::kRowBytes);
}

}  // namespace

void hopper_attention_fwd(const AttentionParams& params, void* stream) {
  dispatch_hopper(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using F = HopperForward<Chosen>;
    const int64_t tiles = count_tiles<F::kBlockM>(params.cu_seqlens_q != nullptr, params.batch_size,
                                                  params.seqlen_q, params.total_q);
    launch_checked("hopper_attention_fwd_kernel", &hopper_attention_fwd_kernel<Chosen>,
                   dim3(static_cast<uint32_t>(tiles), static_cast<uint32_t>(params.num_heads)),
                   Chosen::kThreads, F::kSmemBytes, stream, params);
  });
}

}  // namespace fastattn::cuda
