// Which item of work a block computes: a tile of rows of one head of one sequence.
//
// Packed sequences make items of very different cost, and if the last one to start is long, the
// whole GPU waits for one block. So blocks, which start in the order of their numbers, take the
// items costliest first. The lengths are known to the GPU alone: every block ranks the sequences
// for itself, which takes it less than the launch of a kernel that did so would take everybody, and
// needs no memory from the caller. It is left out where costs are unknown (padded batches), or so
// small that they even out. An item's results do not depend on which block computes it, or when.
//
// A grid of as many blocks as run at once, each with a fixed share of the items, would rank once
// for several items, but cannot correct its shares (csrc/README.md has the numbers), and shares
// that are drawn as blocks get free would need a counter in global memory, and atomics.
// Source of the order: Graham, "Bounds on multiprocessing timing anomalies", 1969.
#pragma once

#include "cuda/seqlen.cuh"
#include "hopper/device.cuh"

namespace fastattn::cuda {

struct WorkItem {
  int sequence, row0, head;  // row0 is behind the sequence's end if the block has nothing to do
};

// Tiles of kRows queries of each head of q.
template <int kRows_>
struct QueryTiles {
  static constexpr int kRows = kRows_;

  __host__ __device__ static const int32_t* cu_seqlens(const AttentionParams& params) {
    return params.cu_seqlens_q;
  }
  __host__ __device__ static int64_t seqlen(const AttentionParams& params) {
    return params.seqlen_q;
  }
  __host__ __device__ static int64_t total(const AttentionParams& params) { return params.total_q; }
  __host__ __device__ static int64_t heads(const AttentionParams& params) {
    return params.num_heads;
  }
  __device__ static int count(const Sequence& sequence) {
    return ceil_div(sequence.seqlen_q, kRows);
  }
  // Of each of them, in units that all sequences share. Causal masks and windows are left out.
  __device__ static int cost(const Sequence& sequence) { return ceil_div(sequence.seqlen_k, 64); }
};

// Tiles of kRows keys of each head of k, at least one of each sequence, with all of its queries.
template <int kRows_>
struct KeyTiles {
  static constexpr int kRows = kRows_;

  __host__ __device__ static const int32_t* cu_seqlens(const AttentionParams& params) {
    return params.cu_seqlens_k;
  }
  __host__ __device__ static int64_t seqlen(const AttentionParams& params) {
    return params.seqlen_k > 0 ? params.seqlen_k : 1;
  }
  __host__ __device__ static int64_t total(const AttentionParams& params) { return params.total_k; }
  __host__ __device__ static int64_t heads(const AttentionParams& params) {
    return params.num_heads_kv;
  }
  __device__ static int count(const Sequence& sequence) {
    return sequence.seqlen_k > kRows ? ceil_div(sequence.seqlen_k, kRows) : 1;
  }
  __device__ static int cost(const Sequence& sequence) {
    const int keys = sequence.seqlen_k < kRows ? sequence.seqlen_k : kRows;
    return ceil_div(keys, 128) * ceil_div(sequence.seqlen_q, 64);
  }
};

template <class Tiles>
class Work {
 public:
  static constexpr uint32_t kBytes = sizeof(uint2);  // of shared memory, for as long as a block

  // A block for each item, and some for which there is none.
  static dim3 grid(const AttentionParams& params) {
    return {static_cast<uint32_t>(num_tiles(params) * Tiles::heads(params))};
  }

  // The block's item, by all of its threads. `scratch` is shared memory for now.
  __device__ __forceinline__ static WorkItem find(const AttentionParams& params, uint32_t smem,
                                                  uint32_t scratch) {
    const int heads = static_cast<int>(Tiles::heads(params));
    const int tile = block_idx().x / heads, head = block_idx().x % heads;
    if (is_ranked(params)) return find_ranked(params, tile, head, smem, scratch);
    const TilePlace place = find_tile<Tiles::kRows>(tile, Tiles::cu_seqlens(params),
                                                    static_cast<int>(params.batch_size),
                                                    static_cast<int>(Tiles::seqlen(params)));
    return {place.sequence, place.row0, head};
  }

 private:
  // With more sequences, or shorter ones on average, ranking takes longer than it may save: for 128
  // of them about 700 cycles, of some 5000 for 128 rows. Not measured yet (2026-11-30).
  static constexpr int kMaxRanked = 128, kMinMeanRows = 128;
  static constexpr int kIndexBits = 7, kMaxCost = (1 << (32 - kIndexBits)) - 1;
  static_assert(kMaxRanked == 1 << kIndexBits, "a cost and a sequence share a word");

  __device__ __forceinline__ static bool is_ranked(const AttentionParams& params) {
    return Tiles::cu_seqlens(params) != nullptr && params.batch_size < kMaxRanked &&
           Tiles::total(params) >= kMinMeanRows * params.batch_size;
  }
  // At least as many as there are.
  static int64_t num_tiles(const AttentionParams& params) {
    return count_tiles<Tiles::kRows>(Tiles::cu_seqlens(params) != nullptr, params.batch_size,
                                     Tiles::seqlen(params), Tiles::total(params));
  }

  // A thread has one sequence, the rows behind the last one included, and counts the tiles that
  // come before its own.
  __device__ __forceinline__ static WorkItem find_ranked(const AttentionParams& params, int tile,
                                                         int head, uint32_t smem,
                                                         uint32_t scratch) {
    const int i = thread_idx().x, sequences = static_cast<int>(params.batch_size) + 1;
    const auto place = [&](int j) { return scratch + j * static_cast<uint32_t>(sizeof(uint2)); };
    uint2 own{0, 0};  // cost and, among equals, the earlier sequence; tiles
    if (i < sequences) {
      const Sequence sequence(params, i);
      const int cost = sequence.behind_last ? 0 : Tiles::cost(sequence);
      own.x = static_cast<uint32_t>(cost < kMaxCost ? cost : kMaxCost) << kIndexBits |
              static_cast<uint32_t>(kMaxRanked - 1 - i);
      own.y = static_cast<uint32_t>(Tiles::count(sequence));
      sts(place(i), own);
    }
    if (i == 0) sts(smem, uint2{0, 0x7fffffffu});
    sync_threads();
    if (i < sequences) {
      uint32_t before = 0;
      for (int j = 0; j < sequences; ++j) {
        const uint2 other = lds<uint2>(place(j));
        if (other.x > own.x) before += other.y;
      }
      const uint32_t local = static_cast<uint32_t>(tile) - before;  // wraps if it is not its own
      if (local < own.y) sts(smem, uint2{static_cast<uint32_t>(i), local * Tiles::kRows});
    }
    sync_threads();
    const uint2 found = lds<uint2>(smem);
    return {static_cast<int>(found.x), static_cast<int>(found.y), head};
  }
};

}  // namespace fastattn::cuda
