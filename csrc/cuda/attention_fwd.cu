// Fused attention, forward.
//
//   s   = q @ k.T                        a tile of scores in registers, never stored
//   s2  = the rule of mask.cuh
//   m   = max(m, rowmax(s2))             running maximum
//   p   = 2^(s2 - m);  l = l + rowsum(p)
//   acc = acc + (keep * p) @ v           after acc and l were rescaled if m grew
//   out = keep_scale * acc / l;  lse = ln(2) * (m + log2(l))
//
// A block of 4 warps owns kBlockM queries of one head of one sequence, 16 or 32 rows a warp, and
// keys stream by in blocks of kBlockN. Two stages of k and v lie in shared memory: while one is
// multiplied, the other is being filled, and a barrier a block of keys is all that warps share.
// Queries pass through the second stage on their way to registers before it is needed. Weights
// never leave the registers of the warp, where they are already in the layout of a left factor.
// Source: Dao, "FlashAttention-2", 2023, algorithm 1.
#include "cuda/attention_traits.cuh"
#include "cuda/dropout.cuh"
#include "cuda/online_softmax.cuh"

namespace fastattn::cuda {
namespace {

template <class Traits>
struct Forward {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kRowTiles = Traits::kFwd.row_tiles;
  static constexpr int kBlockM = owned_rows(Traits::kFwd);
  static constexpr int kBlockN = Traits::kFwd.stream;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr uint32_t kTileBytes = kBlockN * SmemTile<kHeadDim>::kRowBytes;
  static constexpr uint32_t kStageBytes = 2 * kTileBytes;  // k and v
  static constexpr uint32_t kSmemBytes = 2 * kStageBytes;
  static_assert(kBlockM * SmemTile<kHeadDim>::kRowBytes <= kStageBytes, "q fits into a stage");

  // What a warp carries from one block of keys to the next.
  struct State {
    LeftRows<kHeadDim, kRowTiles, /*kHeld=*/true> q;
    float acc[kRowTiles][kHeadDim / 8][4];
    OnlineSoftmax softmax[kRowTiles];
  };

  // The scores of the warp's rows, from row0 on, with a block of keys, and what follows from them.
  __device__ __forceinline__ static void attend(State& state, uint32_t stage,
                                                const ScoreRule<Traits>& rule,
                                                const Dropout& dropout, int row0,
                                                const KeyBlock<kBlockN>& keys) {
    constexpr int kColTiles = kBlockN / 8;
    float s[kRowTiles][kColTiles][4] = {};
    multiply_by_rows<T>(s, state.q, stage);
    uint32_t p[kRowTiles][kBlockN / 16][4];
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const int tile_row = row0 + 16 * m;
      float capped[kColTiles][4];
      rule.apply(s[m], capped, ScorePlace<false>::of_tile(tile_row, keys.col0));
      mask_keys(s[m], keys.live);
      float rescale[2];
      state.softmax[m].update(s[m], rule.factor(), rescale);
      FASTATTN_UNROLL
      for (int n = 0; n < kHeadDim / 8; ++n) {
        FASTATTN_UNROLL
        for (int i = 0; i < 4; ++i) state.acc[m][n][i] *= rescale[i / 2];
      }
      FASTATTN_UNROLL
      for (int k = 0; k < kBlockN / 16; ++k) {
        if (Traits::kMayDrop && dropout.is_on()) {
          dropout.drop(s[m][2 * k], s[m][2 * k + 1], tile_row, keys.col0 + 16 * k);
        }
        pack_left<T>(p[m][k], s[m][2 * k], s[m][2 * k + 1]);
      }
    }
    multiply_by_cols<T, kHeadDim>(state.acc, p, stage + kTileBytes);
  }

  __device__ __forceinline__ static void store(State& state, const AttentionParams& params,
                                               const Sequence& sequence, int head, int row0,
                                               uint32_t smem) {
    const int head_dim = static_cast<int>(params.head_dim);
    const GlobalRows<T> out = q_rows<Traits, T>(sequence, params.out, head, head_dim);
    float* lse_rows = sequence.row_stats(params.lse, head);
    const float kept = Traits::kMayDrop ? keep_scale(params) : 1.0f;
    float scale[kRowTiles][2];
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      float lse[2];
      state.softmax[m].finish(scale[m], lse);
      FASTATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        scale[m][half] *= kept;
        const int row = row0 + 16 * m + 8 * half + quad_row();
        if (quad_col() == 0 && row < sequence.seqlen_q) {
          stg(lse_rows + row * params.lse.row_stride, lse[half]);
        }
      }
    }
    store_rows<Traits>(out, row0, sequence.seqlen_q, head_dim, smem, state.acc, scale);
  }
};

// Grid: (tiles of kBlockM queries of all sequences, num_heads).
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    attention_fwd_kernel(const AttentionParams params) {
  using F = Forward<Traits>;
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

  const uint32_t smem = smem_base(), q_smem = smem + F::kStageBytes;
  // Rows behind the last sequence see no key.
  const int end = sequence.behind_last ? 0 : rule.end_col(place.row0, kBlockM);
  KeyBlock<kBlockN> keys =
      KeyBlock<kBlockN>::find(params, sequence, rule.first_col(place.row0), end);
  copy_rows<Traits, kBlockM>(q_smem, q, place.row0, head_dim, [&](int step, int i) {
    return place.row0 + step + i < sequence.seqlen_q && keys.exists();
  });
  if (keys.exists()) copy_keys<Traits>(smem, k, v, head_dim, keys);
  cp_async_commit();

  typename F::State state{};
  const int warp_row = warp_idx() * F::kWarpRows;
  cp_async_wait<0>();
  sync_threads();
  state.q.load(q_smem, warp_row);
  for (uint32_t stage = 0; keys.exists(); stage ^= 1) {
    cp_async_wait<0>();
    sync_threads();  // this stage has landed, and nobody reads the other one any more
    const KeyBlock<kBlockN> next = keys.next(params, sequence);
    if (next.exists()) {
      copy_keys<Traits>(smem + (stage ^ 1) * F::kStageBytes, k, v, head_dim, next);
    }
    cp_async_commit();
    F::attend(state, smem + stage * F::kStageBytes, rule, dropout, place.row0 + warp_row, keys);
    keys = next;
  }
  sync_threads();  // nobody reads a stage any more
  F::store(state, params, sequence, head, place.row0 + warp_row,
           smem + warp_row * SmemTile<Traits::kHeadDim>::kRowBytes);
}

}  // namespace

void attention_fwd(const AttentionParams& params, void* stream) {
  dispatch(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using F = Forward<Chosen>;
    const int64_t tiles = count_tiles<F::kBlockM>(params.cu_seqlens_q != nullptr, params.batch_size,
                                                  params.seqlen_q, params.total_q);
    launch_checked("attention_fwd_kernel", &attention_fwd_kernel<Chosen>,
                   dim3(static_cast<uint32_t>(tiles), static_cast<uint32_t>(params.num_heads)),
                   Chosen::kThreads, F::kSmemBytes, stream, params);
  });
}

}  // namespace fastattn::cuda
