// Fused attention, backward, for Hopper: dq, dk and dv of a head in one pass, without atomics.
//
//   s.T  = k @ q.T,  dp.T = v @ dout.T   64 keys of each warpgroup x 64 queries
//   dv  += (keep * p).T @ dout           in registers, times keep_scale at the end
//   dk  += ds.T @ q                      in registers, times softmax_scale at the end
//   dq  += ds @ k                        in shared memory, times softmax_scale at the end
//
// A block of two warpgroups owns up to 512 queries and keys of one head. For each 128 of the keys,
// 64 to a warpgroup, the queries stream by, 64 at a time, through two stages that all threads fill.
// ds.T is the left factor of dk in registers, and in shared memory the one of dq, which the
// warpgroups compute in turns: that of even tiles of queries and that of odd ones. So each number
// of dq has one thread that adds to it, in one order. The dq of 512 queries is 128 KiB of float32,
// and leaves a block alone on its SM.
//
// Of two heads with up to 64 queries and keys, each warpgroup computes one, dq in registers too. Of
// a longer sequence, and where query heads share a key head, a block makes a pass for dk and dv of
// 512 keys, and passes for dq of 512 queries: seven products a tile instead of five. Above head_dim
// 64, dq would fit for 128 queries only: a block owns 128 keys and computes dk and dv, and
// attention_dq.cu dq. Sources: Dao, "FlashAttention-2", 2023, algorithm 2; Shah et al.,
// "FlashAttention-3", 2024.
#include "cuda/query_grad.cuh"
#include "hopper/tile.cuh"
#include "hopper/work.cuh"

namespace fastattn::cuda {
namespace {

// What a block computes in one go over its keys and, for each 128 of them, over its queries.
struct Pass {
  int col0, col_end, row0, row_end, head, end_head, with_dkdv, with_dq;
};

template <class Traits>
struct HopperBackward {
  using T = typename Traits::T;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr bool kKeepsDq = Traits::kKeepsDq;
  static constexpr int kBlockN = kNumGroups * kGroupRows;
  // dk and dv of 128 columns take half of the registers, and dropout needs some too.
  static constexpr int kBlockM = kKeepsDq || !Traits::kMayDrop ? 64 : 32;
  // Queries whose scores are in registers at once; the rules of scores need some too.
  static constexpr int kPart = Traits::kGeneral ? 32 : kBlockM;
  static constexpr int kOwned = kKeepsDq ? 512 : kBlockN;  // keys, and queries whose dq fits
  using Keys = KeyBlock<kBlockN>;
  using Items = Work<KeyTiles<kOwned, /*kMayPair=*/kKeepsDq>>;
  using Stats = SmemStats<kBlockM>;
  using KeyTile = FactorTile<kHeadDim, kBlockN>;
  using QueryTile = FactorTile<kHeadDim, kBlockM>;
  using DsTile = FactorTile<kGroupRows, kBlockN>;
  static constexpr uint32_t kStageBytes = 2 * QueryTile::kBytes;  // q and dout
  static constexpr uint32_t kDqTileBytes = kBlockM * kHeadDim * sizeof(float);
  // Keys and values; two stages of queries; ds.T for each, where results go out too; dq;
  // statistics; the ring's barriers; the item of work.
  static constexpr uint32_t kStages = 2 * KeyTile::kBytes;
  static constexpr uint32_t kDs = kStages + 2 * kStageBytes;
  static constexpr uint32_t kDq = kDs + (kKeepsDq ? 2 : 1) * DsTile::kBytes;
  static constexpr uint32_t kStats = kDq + (kKeepsDq ? kOwned / kBlockM * kDqTileBytes : 0);
  static constexpr uint32_t kRing = kStats + 2 * Stats::kBytes;
  static constexpr uint32_t kWork = kRing + Ring::kBytes;
  static constexpr uint32_t kSmemBytes = kWork + Items::kBytes;
  static_assert(QueryTile::kBytes % kTileAlignment == 0, "tiles begin where swizzles do");

  const AttentionBwdParams& params;
  const Sequence& sequence;
  const int kv_head, head_dim;
  const uint32_t smem;
  const int group;  // the thread's warpgroup
  const Ring ring;
  uint32_t fills = 0;  // of stages that were multiplied

  struct Results {
    float dk[kHeadDim / 8][4], dv[kHeadDim / 8][4];
  };
  // The queries that meet a block of keys: tiles of kBlockM, counted from the sequence's first.
  struct Queries {
    int tile, end_tile;
    __device__ __forceinline__ bool exist() const { return tile < end_tile; }
  };

  __device__ __forceinline__ uint32_t stage(uint32_t n) const {
    return smem + kStages + n % 2 * kStageBytes;
  }
  __device__ __forceinline__ QueryTile q(uint32_t n) const { return {stage(n)}; }
  __device__ __forceinline__ QueryTile dout(uint32_t n) const {
    return {stage(n) + QueryTile::kBytes};
  }
  __device__ __forceinline__ uint32_t stats(uint32_t n) const {
    return smem + kStats + n % 2 * Stats::kBytes;
  }
  // Where a warp's results, and its rows of ds.T, lie: no other warp writes there.
  __device__ __forceinline__ uint32_t warp_rows() const {
    return smem + kDs + warp_idx() * kFragmentRows * DsTile::kRowBytes;
  }

  __device__ __forceinline__ Keys keys_at(int col0, int end) const {
    return {col0, end, LiveKeys<kBlockN>::find(params, sequence, col0)};
  }
  // Keys behind the last sequence, and padding, meet none.
  __device__ __forceinline__ Queries queries_of(const Keys& keys, const Pass& pass) const {
    if (!keys.exists() || sequence.behind_last || !keys.live.any()) return {0, 0};
    const ScoreRule<Traits> any_head(params, sequence, pass.head);
    const int first = any_head.first_row(keys.col0), end = any_head.end_row(keys.col0, kBlockN);
    return {(first > pass.row0 ? first : pass.row0) / kBlockM,
            ceil_div(end < pass.row_end ? end : pass.row_end, kBlockM)};
  }

  // Of the tile's query i, if it has as many.
  __device__ __forceinline__ RowGrad load_stats(int head, int tile, int i) const {
    return i < kBlockM ? RowGrad::load(params, sequence, head, tile * kBlockM + i) : RowGrad{};
  }
  __device__ __forceinline__ void copy_tile(uint32_t n, int head, int tile) const {
    const int row0 = tile * kBlockM;
    ring.wait_until_empty(n);
    copy_queries<Traits, kBlockM>(stage(n), params, sequence, head, row0, sequence.seqlen_q - row0);
  }
  // Starts the copies of the first queries of a head.
  __device__ __forceinline__ void begin_head(int head, int tile) const {
    copy_tile(fills, head, tile);
    const int i = thread_idx().x;
    Stats::store(stats(fills), i, load_stats(head, tile, i));
    cp_async_commit();
  }
  // Starts the copies of a block of keys and of the first queries that meet it: when those fill
  // their stage, the keys have landed too.
  __device__ __forceinline__ void begin(const Keys& keys, const Queries& queries,
                                        const Pass& pass) const {
    if (!queries.exist()) return;
    copy_keys<Traits>(smem, k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim),
                      k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim), head_dim,
                      keys);
    begin_head(pass.head, queries.tile);
  }

  // The weights and score gradients of the warp's 16 keys, from col0 on, and the tile of queries
  // from row0 on: as left factors. `live` has a bit for each of the keys.
  __device__ __forceinline__ void score_grads(uint32_t (&p)[kBlockM / 16][4],
                                              uint32_t (&ds)[kBlockM / 16][4],
                                              const ScoreGrad<Traits>& grad, uint32_t n,
                                              const LiveKeys<kWarpSize>& live, int row0,
                                              int col0) const {
    const KeyTile k = KeyTile{smem}.from_row(group * kGroupRows);
    const KeyTile v{k.addr + KeyTile::kBytes};
    FASTATTN_UNROLL
    for (int part = 0; part < kBlockM; part += kPart) {
      float s[kPart / 8][4], dp[kPart / 8][4];
      wgmma_fence(s, dp);
      issue_by_rows<T>(s, k, q(n).from_row(part));
      issue_by_rows<T>(dp, v, dout(n).from_row(part));
      wgmma_commit();
      KeptScores<kPart / 16> kept;  // drawn while the products are under way
      if constexpr (Traits::kMayDrop) {
        kept = grad.dropout.template kept</*kTransposed=*/true, kPart / 16>(row0 + part, col0);
      }
      wgmma_wait<0>(s, dp);
      FASTATTN_UNROLL
      for (int j = 0; j < kPart / 16; ++j) {
        const int row = part + 16 * j;
        float (&s_pair)[2][4] = reinterpret_cast<float (&)[2][4]>(s[2 * j]);
        float (&dp_pair)[2][4] = reinterpret_cast<float (&)[2][4]>(dp[2 * j]);
        float capped[2][4];
        grad.rule.apply(s_pair, capped, ScorePlace<true>::of_tile(row0 + row, col0));
        // A key that is padding would meet weights of any size, and dq would meet them.
        FASTATTN_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (!live.test(8 * (i % 4 / 2), quad_row())) s_pair[i / 4][i % 4] = -kInfinity;
        }
        grad.compute(s_pair, dp_pair, capped, Stats::read(stats(n), row), /*before_softcap=*/true,
                     [&](int half, int i) { return kept.keeps(j, half, i); });
        pack_left<T>(p[row / 16], s_pair[0], s_pair[1]);
        pack_left<T>(ds[row / 16], dp_pair[0], dp_pair[1]);
      }
    }
  }

  // Writes the warp's rows of ds.T, keys, to where the product of fill number n finds them.
  __device__ __forceinline__ void store_ds(const uint32_t (&ds)[kBlockM / 16][4],
                                           uint32_t n) const {
    using Tile = SmemTile<kGroupRows>;
    const uint32_t row =
        warp_rows() + n % 2 * DsTile::kBytes + Tile::offset(quad_row(), 0) + 2 * quad_col();
    FASTATTN_UNROLL
    for (int k = 0; k < kBlockM / 16; ++k) {
      FASTATTN_UNROLL
      for (int i = 0; i < 4; ++i) sts(Tile::advance(row, 2 * k + i / 2, 8 * (i % 2)), ds[k][i]);
    }
    fence_proxy_async();
  }

  // A thread's part of the dq of a tile of queries, four numbers at a time.
  __device__ __forceinline__ uint32_t dq_of(int local_tile) const {
    const int thread = thread_idx().x % kGroupThreads;
    return smem + kDq + local_tile * kDqTileBytes + thread * static_cast<uint32_t>(sizeof(float4));
  }
  static constexpr uint32_t kDqStep = kGroupThreads * sizeof(float4);

  // dq of a tile += ds @ k, by one warpgroup.
  __device__ __forceinline__ void add_dq(int local_tile, uint32_t n) const {
    float dq[kHeadDim / 8][4];
    wgmma_fence(dq);
    issue_transposed<T>(dq, DsTile{smem + kDs + n % 2 * DsTile::kBytes}, KeyTile{smem});
    wgmma_commit();
    wgmma_wait<0>(dq);
    FASTATTN_UNROLL
    for (int j = 0; j < kHeadDim / 8; ++j) {
      const uint32_t addr = dq_of(local_tile) + j * kDqStep;
      const float4 sum = lds<float4>(addr);
      sts(addr, float4{sum.x + dq[j][0], sum.y + dq[j][1], sum.z + dq[j][2], sum.w + dq[j][3]});
    }
  }

  // dv and dk of the warpgroup's keys += p.T @ dout and ds.T @ q, with a stage's queries.
  __device__ __forceinline__ void issue_dkdv(Results& results, const uint32_t (&p)[kBlockM / 16][4],
                                             const uint32_t (&ds)[kBlockM / 16][4],
                                             uint32_t n) const {
    issue_by_cols<T>(results.dv, p, dout(n));
    issue_by_cols<T>(results.dk, ds, q(n));
  }

  // What a tile of queries gives to the warpgroup's keys, and gets from all 128.
  __device__ __forceinline__ void meet(Results& results, const ScoreGrad<Traits>& grad,
                                       const LiveKeys<kWarpSize>& live, int tile, int col0,
                                       uint32_t n, const Pass& pass) const {
    uint32_t p[kBlockM / 16][4], ds[kBlockM / 16][4];
    score_grads(p, ds, grad, n, live, tile * kBlockM, col0 + warp_idx() * kFragmentRows);
    wgmma_fence(results.dv, results.dk, p, ds);
    if (pass.with_dkdv) issue_dkdv(results, p, ds, n);
    wgmma_commit();
    if constexpr (kKeepsDq) {
      if (pass.with_dq) {
        store_ds(ds, n);
        const int barrier = 1 + n % 2;
        if (tile % kNumGroups == group) {
          named_barrier_sync(barrier, Traits::kThreads);
          add_dq(tile - pass.row0 / kBlockM, n);
        } else {
          named_barrier_arrive(barrier, Traits::kThreads);
        }
      }
    }
    wgmma_wait<0>(results.dv, results.dk);
  }

  // A block of keys meets the queries of a head, the first of which are on their way.
  __device__ __forceinline__ void stream(Results& results, const Keys& keys, Queries queries,
                                         int head, const Pass& pass) {
    const ScoreRule<Traits> rule(params, sequence, head);
    const Dropout dropout(params, sequence, head);
    const ScoreGrad<Traits> grad{rule, dropout, keep_scale()};
    const LiveKeys<kWarpSize> live = keys.live.from(kFragmentRows * warp_idx());
    for (; queries.exist(); ++queries.tile, ++fills) {
      const int next = queries.tile + 1;
      RowGrad next_stats;
      if (next < queries.end_tile) {
        copy_tile(fills + 1, head, next);
        next_stats = load_stats(head, next, thread_idx().x);
      }
      cp_async_commit();
      cp_async_wait<1>();
      ring.filled(fills);
      ring.wait_until_full(fills);
      meet(results, grad, live, queries.tile, keys.col0, fills, pass);
      // Loaded before the products, needed after them.
      if (next < queries.end_tile) {
        Stats::store(stats(fills + 1), thread_idx().x, next_stats);
      }
      ring.emptied(fills);
    }
  }

  __device__ __forceinline__ float keep_scale() const {
    return Traits::kMayDrop ? cuda::keep_scale(params) : 1.0f;
  }
  __device__ __forceinline__ float softmax_scale() const {
    return static_cast<float>(params.softmax_scale);
  }

  // Writes the warp's 16 rows of a result, from row0 on, times a factor.
  __device__ __forceinline__ void store(const GlobalRows<T>& rows, int row0, int row_end,
                                        const float (&acc)[kHeadDim / 8][4], float factor) const {
    const float scale[1][2] = {{factor, factor}};
    store_rows<Traits>(rows, row0, row_end, head_dim, warp_rows(),
                       reinterpret_cast<const float (&)[1][kHeadDim / 8][4]>(acc), scale);
  }
  __device__ __forceinline__ void store_dkdv(const Results& results, int head, int col) const {
    store(k_rows<Traits, T>(sequence, params.dk, head, head_dim), col, sequence.seqlen_k,
          results.dk, softmax_scale());
    store(k_rows<Traits, T>(sequence, params.dv, head, head_dim), col, sequence.seqlen_k,
          results.dv, keep_scale());
  }
  __device__ __forceinline__ void store_dq(const float (&dq)[kHeadDim / 8][4], int head,
                                           int row) const {
    store(q_rows<Traits, T>(sequence, params.dq, head, head_dim), row, sequence.seqlen_q, dq,
          softmax_scale());
  }

  // Each warpgroup has the tiles whose dq it computes.
  template <class Function>
  __device__ __forceinline__ void for_own_tiles(const Pass& pass, const Function& function) const {
    const int tiles = ceil_div(pass.row_end - pass.row0, kBlockM);
    for (int tile = group; tile < tiles; tile += kNumGroups) function(tile);
  }
  __device__ __forceinline__ void clear_dq(const Pass& pass) const {
    for_own_tiles(pass, [&](int tile) {
      FASTATTN_UNROLL
      for (int j = 0; j < kHeadDim / 8; ++j) sts(dq_of(tile) + j * kDqStep, float4{0, 0, 0, 0});
    });
  }
  __device__ __forceinline__ void store_all_dq(const Pass& pass) const {
    for_own_tiles(pass, [&](int tile) {
      float dq[kHeadDim / 8][4];
      FASTATTN_UNROLL
      for (int j = 0; j < kHeadDim / 8; ++j) {
        const float4 sum = lds<float4>(dq_of(tile) + j * kDqStep);
        dq[j][0] = sum.x, dq[j][1] = sum.y, dq[j][2] = sum.z, dq[j][3] = sum.w;
      }
      store_dq(dq, pass.head,
               pass.row0 + tile * kBlockM + warp_idx() % kGroupWarps * kFragmentRows);
    });
  }

  __device__ __forceinline__ void run(const Pass& pass) {
    if (kKeepsDq && pass.with_dq) clear_dq(pass);
    Keys keys = keys_at(pass.col0, pass.col_end);
    Queries queries = queries_of(keys, pass);
    begin(keys, queries, pass);
    while (keys.exists()) {
      Results results{};
      for (int head = pass.head; queries.exist() && head < pass.end_head; ++head) {
        if (head != pass.head) begin_head(head, queries.tile);
        stream(results, keys, queries, head, pass);
      }
      sync_threads();  // nobody reads keys or ds any more
      const int col0 = keys.col0;
      keys = keys_at(col0 + kBlockN, pass.col_end);
      queries = queries_of(keys, pass);
      begin(keys, queries, pass);
      if (pass.with_dkdv) store_dkdv(results, kv_head, col0 + warp_idx() * kFragmentRows);
    }
    if (kKeepsDq && pass.with_dq) store_all_dq(pass);
  }

  // ---- two heads of a short sequence, one for each warpgroup ----

  // A warpgroup's half of a place for 128 keys, or for ds.T of them.
  template <int kCols>
  __device__ __forceinline__ static FactorTile<kCols, kGroupRows> half_of(
      FactorTile<kCols, kBlockN> tile, int of_group) {
    return {tile.from_row(of_group * kGroupRows).addr};
  }

  // Fetches the keys of each head into its half of their place, and the queries into its stage.
  __device__ __forceinline__ void load_pair(const HeadPair& heads, const Keys& keys) const {
    const auto is_live = [&](int step, int i) { return keys.live.test(step, i); };
    for (int i = 0; i < heads.count(); ++i) {
      const int head = heads.first + i;
      const auto k = half_of(KeyTile{smem}, i), v = half_of(KeyTile{smem + KeyTile::kBytes}, i);
      copy_rows<Traits, kGroupRows>(k.addr,
                                    k_rows<Traits, const T>(sequence, params.k, head, head_dim),
                                    /*row0=*/0, head_dim, is_live);
      copy_rows<Traits, kGroupRows>(v.addr,
                                    k_rows<Traits, const T>(sequence, params.v, head, head_dim),
                                    /*row0=*/0, head_dim, is_live);
      copy_tile(i, head, /*tile=*/0);
    }
    cp_async_commit();
    const int i = thread_idx().x % kGroupThreads;
    Stats::store(stats(group), i, load_stats(heads.of(group), /*tile=*/0, i));
    cp_async_wait<0>();
    fence_proxy_async();
    sync_threads();  // all of it has landed
  }

  // The gradients of the warpgroup's head, with its one tile of queries: dk and dv of the warp's 16
  // keys from row `row` on, dq of its 16 queries from there on. `live` is of the keys.
  __device__ __forceinline__ void compute_short(Results& results, float (&dq)[kHeadDim / 8][4],
                                                int head, const LiveKeys<kWarpSize>& live,
                                                int row) const {
    const ScoreRule<Traits> rule(params, sequence, head);
    const Dropout dropout(params, sequence, head);
    uint32_t p[kBlockM / 16][4], ds[kBlockM / 16][4];
    score_grads(p, ds, {rule, dropout, keep_scale()}, group, live, /*row0=*/0, row);
    wgmma_fence(results.dv, results.dk, p, ds);
    issue_dkdv(results, p, ds, group);
    wgmma_commit();
    store_ds(ds, 0);
    sync_group(group);
    wgmma_fence(dq);
    issue_transposed<T>(dq, half_of(DsTile{smem + kDs}, group), half_of(KeyTile{smem}, group));
    wgmma_commit();
    wgmma_wait<1>(results.dv, results.dk);
    wgmma_wait<0>(dq);
    sync_group(group);  // nobody reads ds any more, on whose place results go out
  }

  // All results of the block's heads, each by its warpgroup.
  __device__ __forceinline__ void compute_pair(const HeadPair& heads) const {
    if (!heads.exists()) return;
    const Keys keys = keys_at(0, sequence.seqlen_k);
    const Pass pass{0, sequence.seqlen_k, 0, sequence.seqlen_q, heads.first, heads.end, true, true};
    const bool meet = queries_of(keys, pass).exist();
    if (meet) load_pair(heads, keys);
    if (heads.is_idle(group)) return;
    const int head = heads.of(group), row = warp_idx() % kGroupWarps * kFragmentRows;
    Results results{};
    float dq[kHeadDim / 8][4] = {};
    if (meet) compute_short(results, dq, head, keys.live.from(row), row);
    store_dkdv(results, head, row);
    store_dq(dq, head, row);
  }

  // ---- any sequence ----

  // The results of up to kOwned keys, from `own` on, and of its share of the queries.
  __device__ __forceinline__ void compute(int own) {
    const int sharing = static_cast<int>(params.num_heads / params.num_heads_kv);
    const int head = kv_head * sharing;
    const int seqlen_q = sequence.seqlen_q, seqlen_k = sequence.seqlen_k;
    const bool whole = kKeepsDq && seqlen_q <= kOwned && seqlen_k <= kOwned && sharing == 1;
    const int col_end = own + kOwned < seqlen_k ? own + kOwned : seqlen_k;
    // There may be more queries than keys: a sequence's blocks share them out.
    const int stride = seqlen_k > kOwned ? ceil_div(seqlen_k, kOwned) * kOwned : kOwned;
    Pass pass{own, col_end, 0, seqlen_q, head, head + sharing, true, whole};
    while (true) {
      run(pass);
      if (whole || !kKeepsDq) return;
      // The next head, and after the last of them the next queries.
      const bool first = pass.with_dkdv;
      pass.head = first || pass.end_head == head + sharing ? head : pass.end_head;
      pass.end_head = pass.head + 1;
      if (first)
        pass.row0 = own;
      else if (pass.head == head)
        pass.row0 += stride;
      if (pass.row0 >= seqlen_q) return;
      pass.row_end = pass.row0 + kOwned < seqlen_q ? pass.row0 + kOwned : seqlen_q;
      pass.col0 = 0, pass.col_end = seqlen_k, pass.with_dkdv = false, pass.with_dq = true;
    }
  }
};

// Grid: that of Items.
template <class Traits>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(Traits::kThreads, 1)
    hopper_attention_bwd_kernel(const AttentionBwdParams params) {
  using B = HopperBackward<Traits>;
  const uint32_t smem = smem_base();
  const Ring ring(smem + B::kRing);
  ring.init(Traits::kThreads / kWarpSize);
  const WorkItem item = B::Items::find(params, smem + B::kWork, /*scratch=*/smem);
  const Sequence sequence(params, item.sequence);
  if (item.row0 > 0 && item.row0 >= sequence.seqlen_k) return;
  const int head_dim = static_cast<int>(params.head_dim);
  const auto block_at = [&](uint32_t addr) {
    return B{params, sequence, item.slot, head_dim, addr, group_idx(), ring};
  };
  sync_threads();  // the barriers of the ring are there
  if constexpr (B::kKeepsDq) {
    if (B::Items::are_paired(params, sequence)) {
      return block_at(apart(smem)).compute_pair(B::Items::pair(params, item.slot));
    }
  }
  block_at(smem).compute(item.row0);
}

}  // namespace

void hopper_attention_bwd(const AttentionBwdParams& params, void* stream) {
  dispatch_hopper(params, [&](auto traits) {
    using Chosen = decltype(traits);
    using B = HopperBackward<Chosen>;
    attention_delta(params, stream);
    launch_checked("hopper_attention_bwd_kernel", &hopper_attention_bwd_kernel<Chosen>,
                   B::Items::grid(params), Chosen::kThreads, B::kSmemBytes, stream, params);
  });
  hopper_attention_dq(params, stream);
  if (params.dbias.data != nullptr) attention_dbias(params, stream);
}

}  // namespace fastattn::cuda
