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
//
// A sequence of up to 64 queries and keys is work for one warpgroup only, so a block takes two
// heads of it, and half of the blocks of such a tile end at once. Where the host knows that all
// sequences are short, which is in padded batches, these blocks are not started.
#pragma once

#include "cuda/seqlen.cuh"
#include "hopper/tile.cuh"

namespace fastattn::cuda {

struct WorkItem {
  int sequence, row0;  // row0 is behind the sequence's end if the block has nothing to do
  int slot;            // which of the tile's blocks it is: its head, or its pair of heads
};

// The same address, by way of a lane's value, for the code for pairs: the compiler does not know
// that it is the same. It would else compute what depends on it before it branches on whether there
// is a pair, and keep it in registers that the loops for one head need.
__device__ __forceinline__ uint32_t apart(uint32_t addr) { return shfl(addr, 0); }

// The one head of a block: the warpgroups share out its rows.
struct OneHead {
  static constexpr bool kPaired = false;
  int head;

  __device__ __forceinline__ int of(int /*group*/) const { return head; }
  __device__ __forceinline__ bool is_idle(int /*group*/) const { return false; }
  // A warpgroup's first row, if row0 is the block's.
  __device__ __forceinline__ int row_of(int group, int row0) const {
    return row0 + group * kGroupRows;
  }
  // The warp's first row.
  __device__ __forceinline__ int warp_row(int row0) const {
    return row0 + warp_idx() * kFragmentRows;
  }
};

// The heads of a block of a short sequence, one for each warpgroup: two, the last one of an odd
// number, or none, if other blocks have them all.
struct HeadPair {
  static constexpr bool kPaired = true;
  int first, end;

  __device__ __forceinline__ bool exists() const { return first < end; }
  __device__ __forceinline__ int count() const { return end - first; }
  __device__ __forceinline__ bool is_idle(int group) const { return first + group >= end; }
  // The warpgroup's head; if it is idle, one that exists.
  __device__ __forceinline__ int of(int group) const {
    return is_idle(group) ? first : first + group;
  }
  __device__ __forceinline__ int row_of(int /*group*/, int row0) const { return row0; }
  __device__ __forceinline__ int warp_row(int row0) const {
    return row0 + warp_idx() % kGroupWarps * kFragmentRows;
  }
};

// Tiles of kRows queries of each head of q. With kMayPair a block may have two heads.
template <int kRows_, bool kMayPair_>
struct QueryTiles {
  static constexpr int kRows = kRows_;
  static constexpr bool kMayPair = kMayPair_;

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
  // Whether each head has rows that it shares with no other.
  __host__ __device__ static bool are_apart(const AttentionParams& /*params*/) { return true; }
  __device__ static int count(const Sequence& sequence) {
    return ceil_div(sequence.seqlen_q, kRows);
  }
  // Of each of them, in units that all sequences share. Causal masks and windows are left out.
  __device__ static int cost(const Sequence& sequence) { return ceil_div(sequence.seqlen_k, 64); }
};

// Tiles of kRows keys of each head of k, at least one of each sequence, with all of its queries.
template <int kRows_, bool kMayPair_>
struct KeyTiles {
  static constexpr int kRows = kRows_;
  static constexpr bool kMayPair = kMayPair_;

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
  __host__ __device__ static bool are_apart(const AttentionParams& params) {
    return params.num_heads == params.num_heads_kv;
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
  static constexpr bool kMayPair = Tiles::kMayPair;
  static constexpr uint32_t kBytes = sizeof(uint2);  // of shared memory, for as long as a block

  // A block for each item, and some for which there is none.
  static dim3 grid(const AttentionParams& params) {
    return {static_cast<uint32_t>(num_tiles(params) * num_slots(params))};
  }

  // Whether the blocks of a sequence have pairs of heads.
  __device__ __forceinline__ static bool are_paired(const AttentionParams& params,
                                                    const Sequence& sequence) {
    return are_paired(params, sequence.seqlen_q, sequence.seqlen_k);
  }
  __device__ __forceinline__ static HeadPair pair(const AttentionParams& params, int slot) {
    const int num_heads = static_cast<int>(Tiles::heads(params));
    return {2 * slot, 2 * slot + 2 < num_heads ? 2 * slot + 2 : num_heads};
  }

  // The block's item, by all of its threads. `scratch` is shared memory for now.
  __device__ __forceinline__ static WorkItem find(const AttentionParams& params, uint32_t smem,
                                                  uint32_t scratch) {
    const int slots = static_cast<int>(num_slots(params));
    const int tile = block_idx().x / slots, slot = block_idx().x % slots;
    if (is_ranked(params)) return find_ranked(params, tile, slot, smem, scratch);
    const TilePlace place = find_tile<Tiles::kRows>(tile, Tiles::cu_seqlens(params),
                                                    static_cast<int>(params.batch_size),
                                                    static_cast<int>(Tiles::seqlen(params)));
    return {place.sequence, place.row0, slot};
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
  __host__ __device__ static bool are_paired(const AttentionParams& params, int64_t seqlen_q,
                                             int64_t seqlen_k) {
    return kMayPair && Tiles::are_apart(params) && seqlen_q <= kGroupRows && seqlen_k <= kGroupRows;
  }
  // The blocks of a tile.
  __host__ __device__ static int64_t num_slots(const AttentionParams& params) {
    const bool paired =
        params.cu_seqlens_q == nullptr && are_paired(params, params.seqlen_q, params.seqlen_k);
    return paired ? ceil_div<int64_t>(Tiles::heads(params), 2) : Tiles::heads(params);
  }
  // At least as many as there are.
  static int64_t num_tiles(const AttentionParams& params) {
    return count_tiles<Tiles::kRows>(Tiles::cu_seqlens(params) != nullptr, params.batch_size,
                                     Tiles::seqlen(params), Tiles::total(params));
  }

  // A thread has one sequence, the rows behind the last one included, and counts the tiles that
  // come before its own.
  __device__ __forceinline__ static WorkItem find_ranked(const AttentionParams& params, int tile,
                                                         int slot, uint32_t smem,
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
    return {static_cast<int>(found.x), static_cast<int>(found.y), slot};
  }
};

}  // namespace fastattn::cuda
