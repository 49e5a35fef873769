// Fused attention, backward, without storing p: every tile is recomputed (score_grad.cuh).
//
//   delta = rowsum(out * dout) - dlse    this file
//   dv    = keep_scale * (keep * p).T @ dout, dk = softmax_scale * ds.T @ q    attention_dkdv.cu
//   dq    = softmax_scale * ds @ k                                             attention_dq.cu
//   dbias = sum of ds over the broadcast dimensions                            attention_dbias.cu
//
// Each result has one owner, who adds in one order: no atomics, the same bits in every run. The
// price is seven products a tile where one pass over both would take five.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#include "cuda/score_grad.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowThreads = 8;  // lanes that share a row, a chunk of 16 bytes at a time
constexpr int kRowsPerBlock = kThreads / kRowThreads;

template <class T>
__device__ __forceinline__ float dot_chunks(const uint4& a, const uint4& b) {
  const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
  FASTATTN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack2<T>(a_words[i]), y = unpack2<T>(b_words[i]);
    sum += x.x * y.x + x.y * y.y;
  }
  return sum;
}

// Grid: (blocks of rows of all sequences, num_heads). Packed rows are one sequence here.
template <class T>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(kThreads, 1)
    attention_delta_kernel(const AttentionBwdParams params) {
  const bool packed = params.cu_seqlens_q != nullptr;
  const int64_t seqlen = packed ? params.total_q : params.seqlen_q;
  const int64_t rows = packed ? seqlen : seqlen * params.batch_size;
  const int64_t index =
      int64_t{block_idx().x} * kRowsPerBlock + static_cast<int>(thread_idx().x) / kRowThreads;
  const int64_t head = block_idx().y;
  float sum = 0.0f;
  int64_t batch = 0, row = 0;
  if (index < rows) {
    batch = index / seqlen, row = index % seqlen;
    const auto row_of = [&](const TensorRef& ref) {
      return static_cast<const T*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
             row * ref.row_stride;
    };
    const T *out = row_of(params.out), *dout = row_of(params.dout);
    const int head_dim = static_cast<int>(params.head_dim);
    const bool whole = is_aligned(params.out, head_dim) && is_aligned(params.dout, head_dim);
    const int first = static_cast<int>(thread_idx().x) % kRowThreads * kChunk;
    for (int col = first; col < head_dim; col += kRowThreads * kChunk) {
      if (whole) {
        sum += dot_chunks<T>(ldg(reinterpret_cast<const uint4*>(out + col)),
                             ldg(reinterpret_cast<const uint4*>(dout + col)));
      } else {
        sum += dot_chunks<T>(load_chunk(out, col, head_dim), load_chunk(dout, col, head_dim));
      }
    }
  }
  FASTATTN_UNROLL
  for (int mask = 1; mask < kRowThreads; mask *= 2) sum += shfl_xor(sum, mask);
  if (index >= rows || thread_idx().x % kRowThreads != 0) return;
  const auto stat_of = [&](const RowStatsRef& ref) {
    return static_cast<float*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           row * ref.row_stride;
  };
  if (params.dlse.data != nullptr) sum -= ldg(stat_of(params.dlse));
  stg(stat_of(params.delta), sum);
}

}  // namespace

void attention_delta(const AttentionBwdParams& params, void* stream) {
  const int64_t rows =
      params.cu_seqlens_q == nullptr ? params.batch_size * params.seqlen_q : params.total_q;
  const dim3 grid(static_cast<uint32_t>(ceil_div<int64_t>(rows, kRowsPerBlock)),
                  static_cast<uint32_t>(params.num_heads));
  dispatch_element(params.dtype, [&](auto element) {
    launch_checked("attention_delta_kernel", &attention_delta_kernel<decltype(element)>, grid,
                   kThreads, 0, stream, params);
  });
}

void attention_bwd(const AttentionBwdParams& params, void* stream) {
  attention_delta(params, stream);
  attention_dkdv(params, stream);
  attention_dq(params, stream);
  if (params.dbias.data != nullptr) attention_dbias(params, stream);
}

}  // namespace fastattn::cuda
