// Where the rows of a block lie: in which sequence, and from where in the tensors.
//
// Rows and columns within a sequence are int. What they are added to is a pointer that was advanced
// in 64 bits, so a tensor may have more than 2^31 elements.
#pragma once

#include "common/params.h"
#include "cuda/device.cuh"

namespace fastattn::cuda {

constexpr int kWarpSize = 32;

template <class Int>
__host__ __device__ constexpr Int ceil_div(Int x, Int y) {
  return (x + y - 1) / y;
}

// A sequence, and the first of the rows in it that a block owns.
struct TilePlace {
  int sequence, row0;
};

// The tiles of kBlock rows of all sequences, the x dimension of a grid. Packed sequence i begins at
// tile cu_seqlens[i] / kBlock + i, which leaves each as many tiles as it needs or one more: the
// host need not know a length. What lies behind the last sequence counts as one more sequence.
template <int kBlock>
int64_t count_tiles(bool packed, int64_t batch_size, int64_t seqlen, int64_t total) {
  if (packed) return total / kBlock + batch_size + 1;
  return ceil_div<int64_t>(seqlen, kBlock) * batch_size;
}

// Finds a packed tile's sequence, 32 candidates at a time: one load up to 31 sequences.
template <int kBlock>
__device__ __forceinline__ TilePlace find_tile(int tile, const int32_t* cu_seqlens, int batch_size,
                                               int seqlen) {
  if (cu_seqlens == nullptr) {
    const int tiles = ceil_div(seqlen, kBlock);
    return {tile / tiles, tile % tiles * kBlock};
  }
  const int lane = thread_idx().x % kWarpSize;
  int first = 0, count = batch_size + 1;
  while (count > 1) {
    const int step = ceil_div(count, kWarpSize);
    const int candidate = first + lane * step;
    const bool begun =
        lane * step < count && ldg(cu_seqlens + candidate) / kBlock + candidate <= tile;
    const int skipped = (popcount(ballot(begun)) - 1) * step;  // the first has always begun
    first += skipped;
    count = count - skipped < step ? count - skipped : step;
  }
  return {first, (tile - ldg(cu_seqlens + first) / kBlock - first) * kBlock};
}

// One sequence of a batch. Packed rows behind the last sequence have the index batch_size.
struct Sequence {
  int index, seqlen_q, seqlen_k;
  int batch, q_row, k_row;  // batch index and first rows in the tensors
  bool behind_last;

  __device__ __forceinline__ Sequence(const AttentionParams& params, int i)
      : index(i), behind_last(false) {
    if (params.cu_seqlens_q == nullptr) {
      seqlen_q = static_cast<int>(params.seqlen_q), seqlen_k = static_cast<int>(params.seqlen_k);
      batch = i, q_row = 0, k_row = 0;
      return;
    }
    behind_last = i == params.batch_size;
    batch = 0;
    q_row = ldg(params.cu_seqlens_q + i), k_row = ldg(params.cu_seqlens_k + i);
    const int64_t q_end = behind_last ? params.total_q : ldg(params.cu_seqlens_q + i + 1);
    const int64_t k_end = behind_last ? params.total_k : ldg(params.cu_seqlens_k + i + 1);
    seqlen_q = static_cast<int>(q_end - q_row), seqlen_k = static_cast<int>(k_end - k_row);
  }

  // The first row of a head.
  template <class T>
  __device__ __forceinline__ T* q_rows(const TensorRef& ref, int head) const {
    return static_cast<T*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           q_row * ref.row_stride;
  }
  template <class T>
  __device__ __forceinline__ T* k_rows(const TensorRef& ref, int head) const {
    return static_cast<T*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           k_row * ref.row_stride;
  }
  __device__ __forceinline__ float* row_stats(const RowStatsRef& ref, int head) const {
    return static_cast<float*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           q_row * ref.row_stride;
  }
};

// Whether a key is neither padding nor past the end.
__device__ __forceinline__ bool is_live_key(const AttentionParams& params, const Sequence& sequence,
                                            int col) {
  if (col >= sequence.seqlen_k) return false;
  if (params.key_padding_mask == nullptr) return true;
  const uint8_t* mask = params.key_padding_mask + sequence.batch * params.mask_batch_stride;
  return ldg(mask + col * params.mask_col_stride) != 0;
}

// Which of kCols neighbouring keys are live, one bit each.
template <int kCols>
struct LiveKeys {
  static_assert(kCols % kWarpSize == 0, "a warp reads the mask of 32 keys at once");
  static constexpr int kWords = kCols / kWarpSize;
  uint32_t words[kWords];

  // Every lane of a warp gets all bits.
  __device__ __forceinline__ static LiveKeys find(const AttentionParams& params,
                                                  const Sequence& sequence, int col0) {
    LiveKeys live;
    FASTATTN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      const int first = col0 + i * kWarpSize, count = sequence.seqlen_k - first;
      if (params.key_padding_mask == nullptr) {
        live.words[i] = count >= kWarpSize ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
      } else {
        const int lane = thread_idx().x % kWarpSize;
        live.words[i] = ballot(is_live_key(params, sequence, first + lane));
      }
    }
    return live;
  }

  // Key step + i, where `step` is a constant and i does not lead into another word.
  __device__ __forceinline__ bool test(int step, int i) const {
    return (words[step / kWarpSize] >> (step % kWarpSize) >> i & 1) != 0;
  }
  // Those from key i on that are in the same word, which are at least 16 if i is a multiple of it.
  __device__ __forceinline__ LiveKeys<kWarpSize> from(int i) const {
    uint32_t word = words[0];
    FASTATTN_UNROLL
    for (int j = 1; j < kWords; ++j) word = i >= j * kWarpSize ? words[j] : word;
    return {{word >> (i % kWarpSize)}};
  }
  __device__ __forceinline__ bool any() const {
    uint32_t bits = 0;
    FASTATTN_UNROLL
    for (int i = 0; i < kWords; ++i) bits |= words[i];
    return bits != 0;
  }
  __device__ __forceinline__ bool all() const {
    uint32_t bits = ~0u;
    FASTATTN_UNROLL
    for (int i = 0; i < kWords; ++i) bits &= words[i];
    return bits == ~0u;
  }
};

// A block of keys that a block of queries meets, and the way to the next one.
template <int kCols>
struct KeyBlock {
  int col0, end;  // none is left if col0 >= end
  LiveKeys<kCols> live;

  // The first block with a live key in [first, end).
  __device__ __forceinline__ static KeyBlock find(const AttentionParams& params,
                                                  const Sequence& sequence, int first, int end) {
    KeyBlock block{first / kCols * kCols, end, {}};
    for (; block.col0 < end; block.col0 += kCols) {
      block.live = LiveKeys<kCols>::find(params, sequence, block.col0);
      if (block.live.any()) break;
    }
    return block;
  }
  __device__ __forceinline__ KeyBlock next(const AttentionParams& params,
                                           const Sequence& sequence) const {
    return find(params, sequence, col0 + kCols, end);
  }
  __device__ __forceinline__ bool exists() const { return col0 < end; }
};

}  // namespace fastattn::cuda
