// Keys as they stream past the queries of a block, for the kernels that own queries.
#pragma once

#include "hopper/tile.cuh"
#include "hopper/work.cuh"

namespace fastattn::cuda {

// The keys of a head, kBlockN at a time, in the two stages of a ring. Single rows become zeros:
// those at the ends of sequences, and padding, whose NaN a weight of 0 would not undo.
template <class Traits, int kBlockN>
struct KeyStream {
  using T = typename Traits::T;
  using Keys = KeyBlock<kBlockN>;
  using Tile = FactorTile<Traits::kHeadDim, kBlockN>;
  static constexpr uint32_t kStageBytes = 2 * Tile::kBytes;  // k and v
  static constexpr uint32_t kBytes = 2 * kStageBytes;
  static_assert(Tile::kBytes % kTileAlignment == 0, "tiles begin where swizzles do");

  const AttentionParams& params;
  const Sequence& sequence;
  GlobalRows<const T> k, v;
  uint32_t smem;  // of the stages
  Ring ring;

  __device__ __forceinline__ KeyStream(const AttentionParams& params_, const Sequence& sequence_,
                                       int head, uint32_t smem_, Ring ring_)
      : params(params_), sequence(sequence_), smem(smem_), ring(ring_) {
    const int kv_head = head / static_cast<int>(params.num_heads / params.num_heads_kv);
    k = k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim());
    v = k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim());
  }

  // The first keys of those that some of num_rows queries from row0 on may see. Rows behind the
  // last sequence see none.
  __device__ __forceinline__ Keys first(const ScoreRule<Traits>& rule, int row0,
                                        int num_rows) const {
    const int end = sequence.behind_last ? 0 : rule.end_col(row0, num_rows);
    return Keys::find(params, sequence, rule.first_col(row0), end);
  }

  // Starts the copies of fill number n, if there are such keys.
  __device__ __forceinline__ void copy(const Keys& keys, uint32_t n) const {
    if (!keys.exists()) return;
    ring.wait_until_empty(n);
    copy_keys<Traits>(stage(n), k, v, head_dim(), keys);
  }

  // Calls meet(keys, k, v) for each block of keys; the copies of the first one are under way.
  template <class Function>
  __device__ __forceinline__ void for_each(Keys keys, const Function& meet) const {
    for (uint32_t n = 0; keys.exists(); ++n) {
      const Keys next = keys.next(params, sequence);
      copy(next, n + 1);
      cp_async_commit();
      cp_async_wait<1>();
      ring.filled(n);
      ring.wait_until_full(n);
      meet(keys, Tile{stage(n)}, Tile{stage(n) + Tile::kBytes});
      ring.emptied(n);
      keys = next;
    }
  }

  // Calls meet(keys, k, v) for the only keys of a pair's head. Fill number `group` has them; it has
  // landed, and the block has had a barrier since.
  template <class Function>
  __device__ __forceinline__ void meet_own(const Keys& keys, int group,
                                           const Function& meet) const {
    if (keys.exists()) meet(keys, Tile{stage(group)}, Tile{stage(group) + Tile::kBytes});
  }

 private:
  __device__ __forceinline__ int head_dim() const { return static_cast<int>(params.head_dim); }
  __device__ __forceinline__ uint32_t stage(uint32_t n) const { return smem + n % 2 * kStageBytes; }
};

// The body of a kernel whose blocks run one item of queries each. Kernel says where in shared
// memory the barriers of the ring are, and the item.
template <class Kernel, class Params>
__device__ __forceinline__ void run_item(const Params& params) {
  const uint32_t smem = smem_base();
  const Ring ring(smem + Kernel::kRing);
  ring.init(kNumGroups * kGroupWarps);
  using Items = typename Kernel::Items;
  const WorkItem item = Items::find(params, smem + Kernel::kWork, /*scratch=*/smem);
  const Sequence sequence(params, item.sequence);
  if (item.row0 >= sequence.seqlen_q) return;
  if constexpr (Items::kMayPair) {
    if (Items::are_paired(params, sequence)) {
      const HeadPair heads = Items::pair(params, item.slot);
      if (heads.exists()) Kernel::run(params, sequence, heads, item.row0, apart(smem), ring);
      return;
    }
  }
  Kernel::run(params, sequence, OneHead{item.slot}, item.row0, smem, ring);
}

}  // namespace fastattn::cuda
