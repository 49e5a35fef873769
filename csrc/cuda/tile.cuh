// Tiles: rows in shared memory, and the fragments of them that a warp multiplies.
//
// A tile is `rows` rows of kHeadDim numbers of 16 bits, in chunks of 16 bytes. Chunks are permuted
// within a row so that any 8 rows hold one chunk number in 8 different groups of 4 banks: ldmatrix,
// which reads just that, and the stores of fragments have no bank conflict. Where rows are longer
// than Traits::kPanelCols, a tile is panels of that many columns, one behind the other.
//
// With g = lane / 4 and t = lane % 4, a thread holds of a 16 x 8 result rows g and g + 8 of columns
// 2 * t and 2 * t + 1: accumulator i is row g + 8 * (i / 2), column 2 * t + i % 2.
#pragma once

#include "cuda/seqlen.cuh"

namespace fastattn::cuda {

constexpr int kChunk = 8;  // numbers in 16 bytes
constexpr int kFragmentRows = 16;

__device__ __forceinline__ int lane_idx() { return thread_idx().x % kWarpSize; }
__device__ __forceinline__ int warp_idx() { return thread_idx().x / kWarpSize; }
// Which of the first 8 rows of a result, and which first column, a lane holds accumulators of.
__device__ __forceinline__ int quad_row() { return lane_idx() / 4; }
__device__ __forceinline__ int quad_col() { return 2 * (lane_idx() % 4); }

template <int kHeadDim>
struct SmemTile {
  static constexpr int kChunks = kHeadDim / kChunk;
  static constexpr int kRowBytes = 2 * kHeadDim;
  static_assert(kChunks % 4 == 0, "chunks are permuted in groups of 4 or 8");
  // A row of 8 or 16 chunks spans all banks: 8 rows need 8 places. One of 4 or 12 chunks leaves
  // every other row in the other half of the banks: 8 rows need 4 places, changed every 2 rows.
  static constexpr int kGroup = kChunks % 8 == 0 ? 8 : 4;

  __device__ __forceinline__ static uint32_t offset(int row, int chunk) {
    const int permutation = kGroup == 8 ? row & 7 : (row >> 1) & 3;
    return row * kRowBytes + (chunk ^ permutation) * 16;
  }

  // From the address of chunk 0 of a row to that of `chunk`, or from 1 to chunk + 1 if it is even,
  // and `rows` rows below, a multiple of 8. Both are constants: this is an exclusive or and a sum,
  // where offset() would take a register for each chunk.
  __device__ __forceinline__ static uint32_t advance(uint32_t address, int chunk, int rows) {
    return (address ^ (chunk % kGroup * 16)) + chunk / kGroup * kGroup * 16 + rows * kRowBytes;
  }
};

// Rows of one head in global memory.
template <class T>
struct GlobalRows {
  T* data;
  int64_t row_stride;
  bool is_aligned;  // chunks may be read and written whole
};

// Whether every row of a tensor is made of aligned chunks.
__host__ __device__ __forceinline__ bool is_aligned(const TensorRef& ref, int64_t head_dim) {
  const uint64_t elements = reinterpret_cast<uint64_t>(ref.data) / 2;
  return (elements | ref.batch_stride | ref.row_stride | ref.head_stride | head_dim) % kChunk == 0;
}

// The rows of a head, of q or of k, that a kernel reads or writes.
template <class Traits, class T>
__device__ __forceinline__ GlobalRows<T> q_rows(const Sequence& sequence, const TensorRef& ref,
                                                int head, int head_dim) {
  return {sequence.q_rows<T>(ref, head), ref.row_stride,
          !Traits::kGeneral || is_aligned(ref, head_dim)};
}
template <class Traits, class T>
__device__ __forceinline__ GlobalRows<T> k_rows(const Sequence& sequence, const TensorRef& ref,
                                                int head, int head_dim) {
  return {sequence.k_rows<T>(ref, head), ref.row_stride,
          !Traits::kGeneral || is_aligned(ref, head_dim)};
}

// The chunk of a row that cannot be read whole, with zeros past head_dim.
template <class T>
__device__ __forceinline__ uint4 load_chunk(const T* row, int col, int head_dim) {
  const uint16_t* src = reinterpret_cast<const uint16_t*>(row);
  uint32_t words[4] = {0, 0, 0, 0};
  FASTATTN_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    if (col + i < head_dim) words[i / 2] |= uint32_t{ldg(src + col + i)} << (16 * (i % 2));
  }
  return {words[0], words[1], words[2], words[3]};
}

template <class T>
__device__ __forceinline__ void store_chunk(T* row, int col, int head_dim, uint4 chunk) {
  uint16_t* dst = reinterpret_cast<uint16_t*>(row);
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  FASTATTN_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    if (col + i < head_dim) {
      stg(dst + col + i, static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
    }
  }
}

// Starts the copy of kRows rows from row0 on into a tile at `smem`; zeros past head_dim and where
// !is_live(step, i), which is asked for row step + i of the kRows, `step` a constant.
template <class Traits, int kRows, class T, class IsLive>
__device__ __forceinline__ void copy_rows(uint32_t smem, const GlobalRows<const T>& src, int row0,
                                          int head_dim, const IsLive& is_live) {
  constexpr int kPanelCols = Traits::kPanelCols;
  using Tile = SmemTile<kPanelCols>;
  constexpr int kStep = Traits::kThreads / Tile::kChunks >= 32   ? 32
                        : Traits::kThreads / Tile::kChunks >= 16 ? 16
                                                                 : 8;
  static_assert(kRows % kStep == 0 && kStep * Tile::kChunks <= Traits::kThreads, "whole steps");
  const int i = thread_idx().x / Tile::kChunks, chunk = thread_idx().x % Tile::kChunks;
  if (i >= kStep) return;
  FASTATTN_UNROLL
  for (int panel = 0; panel < Traits::kHeadDim / kPanelCols; ++panel) {
    const int col = panel * kPanelCols + chunk * kChunk;
    const bool within = col < head_dim;
    const T* row = src.data + (row0 + i) * src.row_stride;
    // The permutation repeats every 8 rows.
    const uint32_t dst = smem + panel * kRows * Tile::kRowBytes + Tile::offset(i, chunk);
    FASTATTN_UNROLL
    for (int step = 0; step < kRows; step += kStep) {
      const bool live = within && is_live(step, i);
      if (!Traits::kGeneral || src.is_aligned) {
        cp_async_16(dst + step * Tile::kRowBytes, row + col, live);
      } else {
        sts(dst + step * Tile::kRowBytes,
            live ? load_chunk(row, col, head_dim) : uint4{0, 0, 0, 0});
      }
      row += kStep * src.row_stride;
    }
  }
}

// Starts the copies of a block of keys, k before v. Rows that are not live become zeros: a weight
// of 0 does not undo the NaN that padding may hold.
template <class Traits, class T, int kBlockN>
__device__ __forceinline__ void copy_keys(uint32_t smem, const GlobalRows<const T>& k,
                                          const GlobalRows<const T>& v, int head_dim,
                                          const KeyBlock<kBlockN>& keys) {
  const auto is_live = [&](int step, int i) { return keys.live.test(step, i); };
  copy_rows<Traits, kBlockN>(smem, k, keys.col0, head_dim, is_live);
  copy_rows<Traits, kBlockN>(smem + kBlockN * SmemTile<Traits::kHeadDim>::kRowBytes, v, keys.col0,
                             head_dim, is_live);
}

// A warp's 16 * kRowTiles rows of a tile as left factors: held in registers, or read again from
// shared memory for each product, where rows are so wide that registers would not do.
template <int kHeadDim, int kRowTiles, bool kHeld>
class LeftRows {
 public:
  // Row row0 of the tile at `smem` is the warp's first. The tile stays there unless kHeld.
  __device__ __forceinline__ void load(uint32_t smem, int row0) {
    row_ = smem + SmemTile<kHeadDim>::offset(row0 + lane_idx() % 16, lane_idx() / 16);
    FASTATTN_UNROLL
    for (int m = 0; m < (kHeld ? kRowTiles : 0); ++m) {
      FASTATTN_UNROLL
      for (int k = 0; k < kHeadDim / 16; ++k) read(m, k, held_[m][k]);
    }
  }

  // Rows [16 * m, 16 * m + 16) and columns [16 * k, 16 * k + 16).
  __device__ __forceinline__ void get(int m, int k, uint32_t (&a)[4]) const {
    if constexpr (kHeld) {
      FASTATTN_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = held_[m][k][i];
    } else {
      read(m, k, a);
    }
  }

 private:
  __device__ __forceinline__ void read(int m, int k, uint32_t (&a)[4]) const {
    ldmatrix_x4(SmemTile<kHeadDim>::advance(row_, 2 * k, 16 * m), a);
  }

  uint32_t row_;
  uint32_t held_[kHeld ? kRowTiles : 1][kHeadDim / 16][4];
};

// acc += left @ rows.T for the rows of a tile from its first on, 8 for each accumulator.
template <class T, int kHeadDim, int kRowTiles, int kColTiles, bool kHeld>
__device__ __forceinline__ void multiply_by_rows(float (&acc)[kRowTiles][kColTiles][4],
                                                 const LeftRows<kHeadDim, kRowTiles, kHeld>& left,
                                                 uint32_t smem) {
  static_assert(kColTiles % 2 == 0, "one ldmatrix serves two accumulators");
  using Tile = SmemTile<kHeadDim>;
  const int lane = lane_idx();
  const uint32_t row = smem + Tile::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  FASTATTN_UNROLL
  for (int k = 0; k < kHeadDim / 16; ++k) {
    uint32_t a[kRowTiles][4];
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) left.get(m, k, a[m]);
    FASTATTN_UNROLL
    for (int n = 0; n < kColTiles; n += 2) {
      uint32_t b[4];
      ldmatrix_x4(Tile::advance(row, 2 * k, 8 * n), b);
      FASTATTN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16<T>(acc[m][n], a[m], b[0], b[1]);
        mma_m16n8k16<T>(acc[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// acc[m] += a[m] @ rows for the rows of a tile from its first on, 16 for each fragment of a[m].
template <class T, int kHeadDim, int kRowTiles, int kDepthTiles>
__device__ __forceinline__ void multiply_by_cols(float (&acc)[kRowTiles][kHeadDim / 8][4],
                                                 const uint32_t (&a)[kRowTiles][kDepthTiles][4],
                                                 uint32_t smem) {
  using Tile = SmemTile<kHeadDim>;
  const int lane = lane_idx();
  const uint32_t row = smem + Tile::offset(lane % 16, lane / 16);
  FASTATTN_UNROLL
  for (int k = 0; k < kDepthTiles; ++k) {
    FASTATTN_UNROLL
    for (int n = 0; n < kHeadDim / 8; n += 2) {
      uint32_t b[4];
      ldmatrix_x4_trans(Tile::advance(row, n, 16 * k), b);
      FASTATTN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16<T>(acc[m][n], a[m][k], b[0], b[1]);
        mma_m16n8k16<T>(acc[m][n + 1], a[m][k], b[2], b[3]);
      }
    }
  }
}

// Two 16 x 8 results side by side as a left factor, rounded to T.
template <class T>
__device__ __forceinline__ void pack_left(uint32_t (&a)[4], const float (&left)[4],
                                          const float (&right)[4]) {
  a[0] = pack2<T>(left[0], left[1]), a[1] = pack2<T>(left[2], left[3]);
  a[2] = pack2<T>(right[0], right[1]), a[3] = pack2<T>(right[2], right[3]);
}

// Writes a warp's 16 * kRowTiles rows, from row0 on and before row_end. They go through a part of
// shared memory of the warp's own, panel by panel, so that a lane stores 16 bytes and not 4.
template <class Traits, class T, int kRowTiles>
__device__ __forceinline__ void store_rows(const GlobalRows<T>& dst, int row0, int row_end,
                                           int head_dim, uint32_t smem,
                                           const float (&acc)[kRowTiles][Traits::kHeadDim / 8][4],
                                           const float (&scale)[kRowTiles][2]) {
  constexpr int kPanelCols = Traits::kPanelCols;
  using Tile = SmemTile<kPanelCols>;
  const uint32_t fragment = smem + Tile::offset(quad_row(), 0) + 2 * quad_col();
  FASTATTN_UNROLL
  for (int col0 = 0; col0 < Traits::kHeadDim; col0 += kPanelCols) {
    sync_warp();  // the warp has read what lay there
    FASTATTN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      FASTATTN_UNROLL
      for (int n = 0; n < Tile::kChunks; ++n) {
        FASTATTN_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float (&pair)[4] = acc[m][col0 / 8 + n];
          const float x = pair[2 * half], y = pair[2 * half + 1];
          sts(Tile::advance(fragment, n, 16 * m + 8 * half),
              pack2<T>(x * scale[m][half], y * scale[m][half]));
        }
      }
    }
    sync_warp();
    FASTATTN_UNROLL
    for (int i = 0; i < 16 * kRowTiles * Tile::kChunks / kWarpSize; ++i) {
      const int index = i * kWarpSize + lane_idx();
      const int row = index / Tile::kChunks, col = col0 + index % Tile::kChunks * kChunk;
      if (row0 + row >= row_end || col >= head_dim) continue;
      const uint4 chunk = lds<uint4>(smem + Tile::offset(row, index % Tile::kChunks));
      T* dst_row = dst.data + (row0 + row) * dst.row_stride;
      if (!Traits::kGeneral || dst.is_aligned) {
        stg(reinterpret_cast<uint4*>(dst_row + col), chunk);
      } else {
        store_chunk(dst_row, col, head_dim, chunk);
      }
    }
  }
}

}  // namespace fastattn::cuda
