// Fused attention, backward, without storing p: every tile is recomputed (score_grad.h).
//
//   dv += (keep * p).T @ dout     times keep_scale at the end
//   dk += ds.T @ q                times softmax_scale at the end
//   dq += ds @ k                  times softmax_scale at the end
//   dbias = sum of ds over the broadcast dimensions
//
// One unit of work is one key head of one sequence with all the query heads that share it, and one
// thread does it from end to end: five matrix products a tile, no atomics, the same order of
// additions whatever the number of threads. The gradient of the bias sums over sequences and
// heads, so it is a pass of its own in which a thread owns the part of dbias it adds to.
// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
#include "cpu/score_grad.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

template <class Math>
struct Scratch {
  using Stat = typename Math::Stat;
  Queries<Math>* queries;  // of each query head of the group
  Stat** dq;               // (max_rows, d_cols) of each query head of the group
  KeyBlock<Math> keys;
  ScoreGradTile<Math> tile;
  Stat *dk, *dv;  // (kGradBlockN, d_cols)
  Stat* holes;
  size_t bytes;

  Scratch(void* block, const GradShape<Math>& shape, int64_t group) {
    Carver carver(block);
    queries = carver.take<Queries<Math>>(group);
    dq = carver.take<Stat*>(group);
    for (int64_t i = 0; i < group; ++i) {
      Queries<Math> head;
      head.carve(carver, shape);
      Stat* head_dq = carver.take<Stat>(shape.max_rows * shape.d_cols);
      if (block != nullptr) queries[i] = head, dq[i] = head_dq;
    }
    keys.carve(carver, shape);
    tile.carve(carver);
    dk = carver.take<Stat>(kGradBlockN * shape.d_cols);
    dv = carver.take<Stat>(kGradBlockN * shape.d_cols);
    holes = carver.take<Stat>(round_up(shape.max_cols, kLanes<Stat>));
    bytes = carver.used();
  }
};

template <class Math, class Element>
class BackwardUnit {
 public:
  using Stat = typename Math::Stat;

  BackwardUnit(const AttentionBwdParams& params, const GradShape<Math>& shape, int64_t sequence,
               int64_t kv_head, void* block)
      : params_(params),
        shape_(shape),
        sequence_(params, sequence),
        kv_head_(kv_head),
        group_(params.num_heads / params.num_heads_kv),
        scratch_(block, shape, group_),
        keys_(Keys<Stat>::find(params, sequence_, scratch_.holes)) {}

  void run() {
    for (int64_t i = 0; i < group_; ++i) {
      scratch_.queries[i].template load<Element>(params_, shape_, sequence_, head(i));
      std::memset(scratch_.dq[i], 0, sequence_.seqlen_q * shape_.d_cols * sizeof(Stat));
    }
    for (int64_t col0 = 0; col0 < sequence_.seqlen_k; col0 += kGradBlockN) run_keys(col0);
    for (int64_t i = 0; i < group_; ++i) {
      store_rows(sequence_.template q_rows<Element>(params_.dq, head(i)), params_.dq.row_stride,
                 scratch_.dq[i], sequence_.seqlen_q, params_.softmax_scale);
    }
  }

 private:
  int64_t head(int64_t i) const { return kv_head_ * group_ + i; }

  // dk and dv of one block of keys, and its part of every dq.
  void run_keys(int64_t col0) {
    const int block_cols =
        static_cast<int>(min_of<int64_t>(kGradBlockN, sequence_.seqlen_k - col0));
    const int cols = static_cast<int>(min_of<int64_t>(block_cols, keys_.end - col0));
    std::memset(scratch_.dk, 0, kGradBlockN * shape_.d_cols * sizeof(Stat));
    std::memset(scratch_.dv, 0, kGradBlockN * shape_.d_cols * sizeof(Stat));
    if (cols > 0) {
      scratch_.keys.template load<Element>(params_, shape_, sequence_, kv_head_, col0, cols,
                                           [&](int i) { return keys_.is_live(col0 + i); });
      for (int64_t i = 0; i < group_; ++i) run_head(i, col0, cols);
    }
    store_rows(
        sequence_.template k_rows<Element>(params_.dk, kv_head_) + col0 * params_.dk.row_stride,
        params_.dk.row_stride, scratch_.dk, block_cols, params_.softmax_scale);
    store_rows(
        sequence_.template k_rows<Element>(params_.dv, kv_head_) + col0 * params_.dv.row_stride,
        params_.dv.row_stride, scratch_.dv, block_cols, philox::keep_scale(params_.drop_threshold));
  }

  void run_head(int64_t i, int64_t col0, int cols) {
    constexpr int kPair = Math::kPair, kLd = ScoreGradTile<Math>::kLd;
    const int d_cols = static_cast<int>(shape_.d_cols);
    const Queries<Math>& queries = scratch_.queries[i];
    ScoreGradTile<Math>& tile = scratch_.tile;
    const ScoreRule<Stat> rule(params_, sequence_, head(i), keys_);
    for (int64_t row0 = 0; row0 < sequence_.seqlen_q; row0 += kGradBlockM) {
      const int rows = static_cast<int>(min_of<int64_t>(kGradBlockM, sequence_.seqlen_q - row0));
      if (!queries.block_is_live[row0 / kGradBlockM] || !rule.sees(row0, rows, col0, cols)) {
        continue;
      }
      tile.compute(params_, shape_, rule, sequence_, head(i), queries, scratch_.keys, row0, rows,
                   col0, cols, /*before_softcap=*/true);
      const int depth_rows = (rows + kPair - 1) / kPair, depth_cols = (cols + kPair - 1) / kPair;
      const int64_t first_words = row0 / kPair * d_cols;
      gemm<Math, 1>(cols, d_cols, depth_rows, tile.p_pairs, kLd, queries.dout_rows + first_words,
                    d_cols, scratch_.dv, d_cols, /*accumulate=*/true);
      gemm<Math, 1>(cols, d_cols, depth_rows, tile.ds_pairs, kLd, queries.q_rows + first_words,
                    d_cols, scratch_.dk, d_cols, /*accumulate=*/true);
      gemm<Math, kLd / kPair>(rows, d_cols, depth_cols, tile.ds_rows, 1, scratch_.keys.k_rows,
                              d_cols, scratch_.dq[i] + row0 * d_cols, d_cols, /*accumulate=*/true);
    }
  }

  void store_rows(Element* dst, int64_t row_stride, const Stat* src, int64_t rows,
                  double scale) const {
    for (int64_t row = 0; row < rows; ++row) {
      prefetch_row<true>(dst + (row + kRowsAhead) * row_stride, shape_.head_dim);
      store_row(dst + row * row_stride, src + row * shape_.d_cols, shape_.head_dim,
                static_cast<Stat>(scale));
    }
  }

  const AttentionBwdParams& params_;
  const GradShape<Math>& shape_;
  const Sequence sequence_;
  const int64_t kv_head_, group_;
  Scratch<Math> scratch_;
  const Keys<Stat> keys_;
};

template <class Math, class Element>
void run_qkv(const AttentionBwdParams& params, const GradShape<Math>& shape) {
  const int64_t group = params.num_heads / params.num_heads_kv;
  const Order order(params);
  parallel_for(params.batch_size * params.num_heads_kv, params.num_threads,
               Scratch<Math>(nullptr, shape, group).bytes, [&](int64_t unit, void* block) {
                 const int64_t sequence = order[unit / params.num_heads_kv];
                 BackwardUnit<Math, Element>(params, shape, sequence, unit % params.num_heads_kv,
                                             block)
                     .run();
               });
}

// Adds to dbias the score gradients of one head of one sequence, for the rows of the unit.
template <class Math, class Element>
void add_bias_grad(const AttentionBwdParams& params, const GradShape<Math>& shape,
                   int64_t sequence_index, int64_t head, int64_t row_begin, int64_t row_end,
                   void* block) {
  using Stat = typename Math::Stat;
  const Sequence sequence(params, sequence_index);
  Scratch<Math> scratch(block, shape, /*group=*/1);
  const Keys<Stat> keys = Keys<Stat>::find(params, sequence, scratch.holes);
  const ScoreRule<Stat> rule(params, sequence, head, keys);
  Queries<Math>& queries = scratch.queries[0];
  queries.template load<Element>(params, shape, sequence, head);
  const int64_t kv_head = head / (params.num_heads / params.num_heads_kv);
  Stat* dbias = static_cast<Stat*>(params.dbias.data) + sequence_index * params.dbias.strides[0] +
                head * params.dbias.strides[1];
  for (int64_t col0 = 0; col0 < keys.end; col0 += kGradBlockN) {
    const int cols = static_cast<int>(min_of<int64_t>(kGradBlockN, keys.end - col0));
    scratch.keys.template load<Element>(params, shape, sequence, kv_head, col0, cols,
                                        [&](int i) { return keys.is_live(col0 + i); });
    for (int64_t row0 = row_begin; row0 < min_of(row_end, sequence.seqlen_q); row0 += kGradBlockM) {
      const int rows = static_cast<int>(min_of<int64_t>(kGradBlockM, sequence.seqlen_q - row0));
      if (!queries.block_is_live[row0 / kGradBlockM] || !rule.sees(row0, rows, col0, cols)) {
        continue;
      }
      scratch.tile.compute(params, shape, rule, sequence, head, queries, scratch.keys, row0, rows,
                           col0, cols, /*before_softcap=*/false);
      for (int i = 0; i < rows; ++i) {
        Stat* dst = dbias + (row0 + i) * params.dbias.strides[2] + col0 * params.dbias.strides[3];
        const Stat* ds = scratch.tile.ds + i * ScoreGradTile<Math>::kLd;
        for (int j = 0; j < cols; ++j) dst[j * params.dbias.strides[3]] += ds[j];
      }
    }
  }
}

// A unit owns one (sequence, head) of dbias, or a chunk of its rows, and sums over the sequences
// and heads that share it.
template <class Math, class Element>
void run_bias(const AttentionBwdParams& params, const GradShape<Math>& shape) {
  constexpr int64_t kChunkRows = 4 * kGradBlockM;
  const BiasRef& dbias = params.dbias;
  const bool rows_shared = dbias.sizes[2] == 1;
  const int64_t chunk_rows = rows_shared ? max_of<int64_t>(shape.max_rows, 1) : kChunkRows;
  const int64_t chunks = max_of<int64_t>((shape.max_rows + chunk_rows - 1) / chunk_rows, 1);
  parallel_for(dbias.sizes[0] * dbias.sizes[1] * chunks, params.num_threads,
               Scratch<Math>(nullptr, shape, /*group=*/1).bytes, [&](int64_t unit, void* block) {
                 const int64_t row_begin = unit % chunks * chunk_rows;
                 const int64_t own_head = unit / chunks % dbias.sizes[1];
                 const int64_t own_sequence = unit / chunks / dbias.sizes[1];
                 for (int64_t sequence = own_sequence; sequence < params.batch_size;
                      sequence += dbias.sizes[0]) {
                   for (int64_t head = own_head; head < params.num_heads; head += dbias.sizes[1]) {
                     add_bias_grad<Math, Element>(params, shape, sequence, head, row_begin,
                                                  row_begin + chunk_rows, block);
                   }
                 }
               });
}

}  // namespace

void attention_bwd(const AttentionBwdParams& params) {
  if (params.batch_size == 0) return;
  dispatch_element(params.dtype, [&](auto math, auto element) {
    using Math = decltype(math);
    using Element = decltype(element);
    const GradShape<Math> shape(params);
    run_qkv<Math, Element>(params, shape);
    if (params.dbias.data != nullptr) run_bias<Math, Element>(params, shape);
  });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
