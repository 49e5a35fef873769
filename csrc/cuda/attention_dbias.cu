// Attention, backward: the gradient of the bias, the sum of ds over what shares an element of it.
//
// A block of 4 warps owns a tile of kBlockM x kBlockN of dbias, in registers, and computes the
// score gradients of every sequence and head that reads it; if the bias is broadcast along queries
// or keys, of all their blocks. It runs only when the bias asks for a gradient, and is written for
// few words: q, dout, k and v of one pair of blocks in shared memory, and no copy ahead.
#include "cuda/query_grad.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kBlockM = kNumWarps * kFragmentRows;
constexpr int kBlockN = 32;  // with 64, ptxas 13.0 spills for sm_75 at head_dim 128
constexpr int kColTiles = kBlockN / 8;

// The part of a head's scores that a tile of dbias sums up.
struct ScoreRange {
  int row0, row_end, col0, col_end;
};

// Adds the score gradients of one head of one sequence.
template <class Traits>
__device__ __forceinline__ void add_head(float (&acc)[kColTiles][4],
                                         const AttentionBwdParams& params, const Sequence& sequence,
                                         int head, const ScoreRange& range) {
  using T = typename Traits::T;
  constexpr uint32_t kRowBytes = SmemTile<Traits::kHeadDim>::kRowBytes;
  const int head_dim = static_cast<int>(params.head_dim);
  const int kv_head = head / static_cast<int>(params.num_heads / params.num_heads_kv);
  const ScoreRule<Traits> rule(params, sequence, head);
  const Dropout dropout(params, sequence, head);
  const ScoreGrad<Traits> grad{rule, dropout, keep_scale(params)};
  const GlobalRows<const T> k = k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim);
  const GlobalRows<const T> v = k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim);
  const uint32_t k_smem = smem_base(), v_smem = k_smem + kBlockN * kRowBytes;
  const uint32_t q_smem = v_smem + kBlockN * kRowBytes;
  const int warp_row = 16 * warp_idx();
  for (int row0 = range.row0; row0 < range.row_end; row0 += kBlockM) {
    const int first = rule.first_col(row0), end = rule.end_col(row0, kBlockM);
    auto keys = KeyBlock<kBlockN>::find(params, sequence, first > range.col0 ? first : range.col0,
                                        end < range.col_end ? end : range.col_end);
    if (!keys.exists()) continue;
    copy_queries<Traits, kBlockM>(q_smem, params, sequence, head, row0, sequence.seqlen_q - row0);
    QueryFragments<Traits, 1> queries;
    queries.load_stats(params, sequence, head, row0 + warp_row);
    for (bool first_keys = true; keys.exists(); first_keys = false) {
      copy_keys<Traits>(k_smem, k, v, head_dim, keys);
      cp_async_commit();
      cp_async_wait<0>();
      sync_threads();
      if (first_keys) queries.load_rows(q_smem, kBlockM * kRowBytes, warp_row);
      FASTATTN_UNROLL
      for (int col = 0; col < kBlockN; col += 16) {
        float ds[1][2][4];
        queries.score_grads(ds, k_smem, v_smem, grad, row0 + warp_row, keys, col,
                            /*before_softcap=*/false);
        FASTATTN_UNROLL
        for (int i = 0; i < 8; ++i) acc[col / 8 + i / 4][i % 4] += ds[0][i / 4][i % 4];
      }
      sync_threads();  // the tiles have been read
      keys = keys.next(params, sequence);
    }
  }
}

// Adds up the columns of each row: afterwards every accumulator of a row holds their sum.
__device__ __forceinline__ void sum_cols(float (&acc)[kColTiles][4]) {
  FASTATTN_UNROLL
  for (int half = 0; half < 2; ++half) {
    float sum = 0.0f;
    FASTATTN_UNROLL
    for (int n = 0; n < kColTiles; ++n) sum += acc[n][2 * half] + acc[n][2 * half + 1];
    sum += shfl_xor(sum, 1);
    sum += shfl_xor(sum, 2);
    FASTATTN_UNROLL
    for (int n = 0; n < kColTiles; ++n) acc[n][2 * half] = acc[n][2 * half + 1] = sum;
  }
}

// Adds up the rows of each column, over all warps.
__device__ __forceinline__ void sum_rows(float (&acc)[kColTiles][4]) {
  constexpr uint32_t kWarpBytes = kBlockN * sizeof(float);
  FASTATTN_UNROLL
  for (int n = 0; n < kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      float sum = acc[n][i] + acc[n][i + 2];
      for (int mask = 4; mask < kWarpSize; mask *= 2) sum += shfl_xor(sum, mask);
      const uint32_t col = 8 * n + quad_col() + i;
      if (quad_row() == 0) {
        sts(smem_base() + warp_idx() * kWarpBytes + col * uint32_t{sizeof(float)}, sum);
      }
    }
  }
  sync_threads();
  FASTATTN_UNROLL
  for (int n = 0; n < kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t col = 8 * n + quad_col() + i;
      float sum = 0.0f;
      for (int warp = 0; warp < kNumWarps; ++warp) {
        sum += lds<float>(smem_base() + warp * kWarpBytes + col * uint32_t{sizeof(float)});
      }
      acc[n][i] = acc[n][i + 2] = sum;
    }
  }
}

// Grid: (tiles of dbias times its sequences, its heads).
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    attention_dbias_kernel(const AttentionBwdParams params) {
  const BiasRef& dbias = params.dbias;
  const int rows = static_cast<int>(dbias.sizes[2]), cols = static_cast<int>(dbias.sizes[3]);
  const int col_tiles = ceil_div(cols, kBlockN), tiles = ceil_div(rows, kBlockM) * col_tiles;
  const int tile = block_idx().x % tiles, own_sequence = block_idx().x / tiles;
  const int own_head = block_idx().y;
  const int row0 = tile / col_tiles * kBlockM, col0 = tile % col_tiles * kBlockN;
  // A size of 1 is a dimension that is broadcast, or all there is of it.
  const bool one_row = rows == 1, one_col = cols == 1;
  float acc[kColTiles][4] = {};
  for (int i = own_sequence; i < params.batch_size; i += static_cast<int>(dbias.sizes[0])) {
    const Sequence sequence(params, i);
    ScoreRange range{row0, sequence.seqlen_q, col0, sequence.seqlen_k};
    if (!one_row && range.row_end > row0 + kBlockM) range.row_end = row0 + kBlockM;
    if (!one_col && range.col_end > col0 + kBlockN) range.col_end = col0 + kBlockN;
    for (int head = own_head; head < params.num_heads; head += static_cast<int>(dbias.sizes[1])) {
      add_head<Traits>(acc, params, sequence, head, range);
    }
  }
  if (one_col) sum_cols(acc);
  if (one_row) sum_rows(acc);
  float* dst = static_cast<float*>(dbias.data) + own_sequence * dbias.strides[0] +
               own_head * dbias.strides[1];
  const auto place = ScorePlace<false>::of_tile(row0 + 16 * warp_idx(), col0);
  FASTATTN_UNROLL
  for (int n = 0; n < kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = place.row(n, i), col = place.col(n, i);
      if (row < rows && col < cols) {
        stg(dst + row * dbias.strides[2] + col * dbias.strides[3], acc[n][i]);
      }
    }
  }
}

}  // namespace

void attention_dbias(const AttentionBwdParams& params, void* stream) {
  const BiasRef& dbias = params.dbias;
  const int64_t tiles =
      ceil_div<int64_t>(dbias.sizes[2], kBlockM) * ceil_div<int64_t>(dbias.sizes[3], kBlockN);
  const dim3 grid(static_cast<uint32_t>(tiles * dbias.sizes[0]),
                  static_cast<uint32_t>(dbias.sizes[1]));
  dispatch_element(params.dtype, [&](auto element) {
    dispatch_head_dim(params.head_dim, [&](auto head_dim) {
      constexpr int kHeadDim = decltype(head_dim)::value;
      using Chosen = Traits<decltype(element), kHeadDim, Variant::kGeneral>;
      constexpr uint32_t kSmemBytes = 2 * (kBlockM + kBlockN) * SmemTile<kHeadDim>::kRowBytes;
      launch_checked("attention_dbias_kernel", &attention_dbias_kernel<Chosen>, grid,
                     Chosen::kThreads, kSmemBytes, stream, params);
    });
  });
}

}  // namespace fastattn::cuda
