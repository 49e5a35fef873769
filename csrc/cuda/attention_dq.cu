// Attention, backward: dq.
//
//   s  = q @ k.T,  dp = dout @ v.T       tiles of 16 queries x 16 keys in registers
//   dq += ds @ k                         times softmax_scale at the end
//
// A block of 4 warps owns kBlockM queries of one head, 16 or 32 rows a warp: q and dout as left
// factors in registers, and keys stream by in blocks of kBlockN as they do in the forward kernel.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#include "cuda/query_grad.cuh"

namespace fastattn::cuda {
namespace {

template <class Traits>
struct DqShape {
  static constexpr int kRowTiles = Traits::kDq.row_tiles;
  static constexpr int kBlockM = owned_rows(Traits::kDq);
  static constexpr int kBlockN = Traits::kDq.stream;
  static constexpr uint32_t kRowBytes = SmemTile<Traits::kHeadDim>::kRowBytes;
  static constexpr uint32_t kStageBytes = 2 * kBlockN * kRowBytes;  // k and v
  static constexpr uint32_t kQueryBytes = 2 * kBlockM * kRowBytes;  // q and dout
  // Queries pass through what is later the second stage, or stay behind it.
  static constexpr uint32_t kQueries = Traits::kHoldsLeft ? kStageBytes : 2 * kStageBytes;
  static constexpr uint32_t kSmemBytes =
      kQueries + kQueryBytes > 2 * kStageBytes ? kQueries + kQueryBytes : 2 * kStageBytes;
};

// Adds to dq what a block of keys gives to the warp's queries, from row0 on, sixteen keys at a
// time.
template <class Traits, int kRowTiles, int kBlockN>
__device__ __forceinline__ void add_dq(float (&dq)[kRowTiles][Traits::kHeadDim / 8][4],
                                       const QueryFragments<Traits, kRowTiles>& queries,
                                       uint32_t k_smem, uint32_t v_smem,
                                       const ScoreGrad<Traits>& grad, int row0,
                                       const KeyBlock<kBlockN>& keys) {
  using T = typename Traits::T;
  for (int col = 0; col < kBlockN && keys.col0 + col < keys.end; col += 16) {
    float ds[kRowTiles][2][4];
    queries.score_grads(ds, k_smem, v_smem, grad, row0, keys, col, /*before_softcap=*/true);
    uint32_t left[kRowTiles][1][4];
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) pack_left<T>(left[m][0], ds[m][0], ds[m][1]);
    multiply_by_cols<T, Traits::kHeadDim>(dq, left,
                                          k_smem + col * SmemTile<Traits::kHeadDim>::kRowBytes);
  }
}

// Grid: (tiles of kBlockM queries of all sequences, num_heads).
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    attention_dq_kernel(const AttentionBwdParams params) {
  using S = DqShape<Traits>;
  using T = typename Traits::T;
  const int head = block_idx().y, head_dim = static_cast<int>(params.head_dim);
  const int kv_head = head / static_cast<int>(params.num_heads / params.num_heads_kv);
  const TilePlace place =
      find_tile<S::kBlockM>(block_idx().x, params.cu_seqlens_q, static_cast<int>(params.batch_size),
                            static_cast<int>(params.seqlen_q));
  const Sequence sequence(params, place.sequence);
  if (place.row0 >= sequence.seqlen_q) return;
  const ScoreRule<Traits> rule(params, sequence, head);
  const Dropout dropout(params, sequence, head);
  const ScoreGrad<Traits> grad{rule, dropout, keep_scale(params)};
  const GlobalRows<const T> k = k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim);
  const GlobalRows<const T> v = k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim);

  const uint32_t smem = smem_base();
  // Rows behind the last sequence see no key.
  const int end = sequence.behind_last ? 0 : rule.end_col(place.row0, S::kBlockM);
  auto keys = KeyBlock<S::kBlockN>::find(params, sequence, rule.first_col(place.row0), end);
  const int live_rows = keys.exists() ? sequence.seqlen_q - place.row0 : 0;
  copy_queries<Traits, S::kBlockM>(smem + S::kQueries, params, sequence, head, place.row0,
                                   live_rows);
  if (keys.exists()) copy_keys<Traits>(smem, k, v, head_dim, keys);
  cp_async_commit();

  const int warp_row = warp_idx() * 16 * S::kRowTiles;
  QueryFragments<Traits, S::kRowTiles> queries;
  queries.load_stats(params, sequence, head, place.row0 + warp_row);
  cp_async_wait<0>();
  sync_threads();
  queries.load_rows(smem + S::kQueries, S::kBlockM * S::kRowBytes, warp_row);
  float dq[S::kRowTiles][Traits::kHeadDim / 8][4] = {};
  for (uint32_t stage = 0; keys.exists(); stage ^= 1) {
    cp_async_wait<0>();
    sync_threads();  // this stage has landed, and nobody reads the other one any more
    const auto next = keys.next(params, sequence);
    if (next.exists()) {
      copy_keys<Traits>(smem + (stage ^ 1) * S::kStageBytes, k, v, head_dim, next);
    }
    cp_async_commit();
    const uint32_t k_smem = smem + stage * S::kStageBytes;
    add_dq(dq, queries, k_smem, k_smem + S::kBlockN * S::kRowBytes, grad, place.row0 + warp_row,
           keys);
    keys = next;
  }
  sync_threads();  // nobody reads a stage any more
  float scale[S::kRowTiles][2];
  FASTATTN_UNROLL
  for (int m = 0; m < S::kRowTiles; ++m) {
    scale[m][0] = scale[m][1] = static_cast<float>(params.softmax_scale);
  }
  store_rows<Traits>(q_rows<Traits, T>(sequence, params.dq, head, head_dim), place.row0 + warp_row,
                     sequence.seqlen_q, head_dim, smem + warp_row * S::kRowBytes, dq, scale);
}

}  // namespace

void attention_dq(const AttentionBwdParams& params, void* stream) {
  dispatch(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using S = DqShape<Chosen>;
    const int64_t tiles = count_tiles<S::kBlockM>(params.cu_seqlens_q != nullptr, params.batch_size,
                                                  params.seqlen_q, params.total_q);
    launch_checked("attention_dq_kernel", &attention_dq_kernel<Chosen>,
                   dim3(static_cast<uint32_t>(tiles), static_cast<uint32_t>(params.num_heads)),
                   Chosen::kThreads, S::kSmemBytes, stream, params);
  });
}

}  // namespace fastattn::cuda
