// Fused attention, forward.
//
//   s  = q @ k.T                        tile of kBlockM x kBlockN scores, never stored whole
//   s2 = the rule of scores.h
//   m  = max(m, rowmax(s2))             running maximum
//   p  = 2^(s2 - m);  l = l + rowsum(p)
//   acc = acc + (keep * p) @ v          after acc and l were rescaled if m grew
//   out = keep_scale * acc / l;  lse = ln(2) * m + ln(l)
//
// One unit of work is a chunk of query rows of one head of one sequence: its rows are packed once,
// then blocks of keys stream by, each packed once for the whole chunk. A row's result depends on
// nothing but its own numbers and the keys in blocks of kBlockN from the sequence's start, so
// padded and packed batches, chunk sizes and thread counts give the same bits.
// Source: Dao, "FlashAttention-2", 2023, algorithm 1.
#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/scores.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

constexpr int kBlockM = 48;   // a multiple of kMicroRows and of the dropout rule's tiles
constexpr int kBlockN = 128;  // kBlockM x kBlockN float scores take half of a 48 KiB cache
constexpr int kMaxChunkRows = 11 * kBlockM;  // about 512: a BERT sequence is one chunk
static_assert(kBlockM % kMicroRows == 0 && kBlockM % philox::kTile == 0, "whole tiles");
static_assert(kBlockN % philox::kTile == 0, "whole tiles");

// The memory of one unit of work.
template <class Math>
struct Scratch {
  using Stat = typename Math::Stat;
  using Word = typename Math::Word;
  Word *q, *k, *v, *p;
  Stat *s, *acc, *row_max, *row_sum, *holes;
  uint8_t* keep;
  size_t bytes;

  Scratch(void* block, int64_t chunk_rows, int64_t seqlen_k, int64_t d_words, int64_t d_cols) {
    Carver carver(block);
    q = carver.take<Word>(chunk_rows * d_words);
    k = carver.take<Word>(kBlockN * d_words);
    v = carver.take<Word>(kBlockN / Math::kPair * d_cols);
    s = carver.take<Stat>(kBlockM * kBlockN);
    p = Math::kPair == 1 ? reinterpret_cast<Word*>(s)
                         : carver.take<Word>(kBlockM * kBlockN / Math::kPair);
    acc = carver.take<Stat>(chunk_rows * d_cols);
    row_max = carver.take<Stat>(chunk_rows);
    row_sum = carver.take<Stat>(chunk_rows);
    holes = carver.take<Stat>(round_up(seqlen_k, kLanes<Stat>));
    keep = carver.take<uint8_t>(kBlockM * kBlockN / 8);
    bytes = carver.used();
  }
};

// Turns one row of scores into weights in place (float) or in `p` (pairs), and updates the row's
// statistics. Returns by how much what was accumulated before must be multiplied.
template <class Math>
inline typename Math::Stat softmax_row(typename Math::Stat* s, typename Math::Word* p, int cols,
                                       typename Math::Stat factor, const uint8_t* keep,
                                       typename Math::Stat* row_max, typename Math::Stat* row_sum) {
  using Stat = typename Math::Stat;
  constexpr int kStep = kLanes<Stat>;
  Vec<Stat> max_lanes = splat(-kInfinity<Stat>);
  for (int j = 0; j < cols; j += kStep) max_lanes = max<Stat>(max_lanes, load(s + j) * factor);
  const Stat old_max = *row_max, new_max = max_of(old_max, reduce_max<Stat>(max_lanes));
  const Stat shift = new_max == -kInfinity<Stat> ? 0 : new_max;
  Vec<Stat> sum = splat<Stat>(0);
  for (int j = 0; j < cols; j += kStep) {
    Vec<Stat> weight = exp2(load(s + j) * factor - shift);
    sum += weight;
    if (keep != nullptr) weight = keep_lanes<Stat>(weight, keep_bits<Stat>(keep, j));
    Math::store_weights(p, j, weight);
  }
  *row_max = new_max;
  const Stat rescale = old_max == new_max || old_max == -kInfinity<Stat>
                           ? 1
                           : exp2(splat(old_max - shift))[0];
  *row_sum = *row_sum * rescale + reduce_add<Stat>(sum);
  return rescale;
}

template <class Math, class Element>
class ForwardUnit {
 public:
  using Stat = typename Math::Stat;
  using Word = typename Math::Word;

  ForwardUnit(const AttentionParams& params, int64_t sequence, int64_t head, int64_t row_begin,
              int64_t row_end, int64_t chunk_rows, void* block)
      : params_(params),
        sequence_(params, sequence),
        head_(head),
        kv_head_(head / (params.num_heads / params.num_heads_kv)),
        row_begin_(row_begin),
        row_end_(row_end),
        head_dim_(static_cast<int>(params.head_dim)),
        d_words_((head_dim_ + Math::kPair - 1) / Math::kPair),
        d_cols_(static_cast<int>(round_up(head_dim_, kLanes<Stat>))),
        scratch_(block, chunk_rows, sequence_.seqlen_k, d_words_, d_cols_),
        keys_(Keys<Stat>::find(params, sequence_, scratch_.holes)),
        rule_(params, sequence_, head, keys_) {}

  void run() {
    load_queries();
    const int rows = static_cast<int>(row_end_ - row_begin_);
    const int64_t first = rule_.first_col(row_begin_) / kBlockN * kBlockN;
    const int64_t end = rule_.end_col(row_begin_, rows);
    for (int64_t col0 = max_of<int64_t>(first, 0); col0 < end; col0 += kBlockN) {
      const int cols = static_cast<int>(min_of<int64_t>(kBlockN, keys_.end - col0));
      load_keys(col0, cols);
      for (int64_t row0 = row_begin_; row0 < row_end_; row0 += kBlockM) {
        const int block_rows = static_cast<int>(min_of<int64_t>(kBlockM, row_end_ - row0));
        if (rule_.sees(row0, block_rows, col0, cols)) step(row0, block_rows, col0, cols);
      }
    }
    store_outputs();
  }

 private:
  void load_queries() {
    const Element* q = sequence_.template q_rows<const Element>(params_.q, head_);
    for (int64_t row0 = row_begin_; row0 < row_end_; row0 += kBlockM) {
      const int rows = static_cast<int>(min_of<int64_t>(kBlockM, row_end_ - row0));
      pack_columns<Math>(q_block(row0), kBlockM, q + row0 * params_.q.row_stride,
                         params_.q.row_stride, rows, head_dim_, [](int) { return true; });
    }
    for (int64_t i = 0; i < row_end_ - row_begin_; ++i) {
      scratch_.row_max[i] = -kInfinity<Stat>;
      scratch_.row_sum[i] = 0;
    }
    std::memset(scratch_.acc, 0, (row_end_ - row_begin_) * d_cols_ * sizeof(Stat));
  }

  void load_keys(int64_t col0, int cols) {
    const auto is_live = [&](int i) { return keys_.is_live(col0 + i); };
    const Element* k = sequence_.template k_rows<const Element>(params_.k, kv_head_);
    const Element* v = sequence_.template k_rows<const Element>(params_.v, kv_head_);
    pack_columns<Math>(scratch_.k, kBlockN, k + col0 * params_.k.row_stride, params_.k.row_stride,
                       cols, head_dim_, is_live);
    pack_rows<Math>(scratch_.v, d_cols_, v + col0 * params_.v.row_stride, params_.v.row_stride,
                    cols, head_dim_, is_live);
  }

  // Scores, weights and accumulation of one tile.
  void step(int64_t row0, int rows, int64_t col0, int cols) {
    const int vec_cols = static_cast<int>(round_up(cols, kLanes<Stat>));
    gemm<Math, 1>(rows, vec_cols, d_words_, q_block(row0), kBlockM, scratch_.k, kBlockN,
                  scratch_.s, kBlockN, /*accumulate=*/false);
    const bool plain = rule_.is_plain(row0, rows, col0, vec_cols);
    const Stat factor = plain ? rule_.factor() : 1;
    const bool dropout = params_.drop_threshold != 0;
    if (dropout) {
      fill_keep_mask(scratch_.keep, kBlockN / 8, params_.seed, params_.drop_threshold,
                     static_cast<uint32_t>(sequence_.index), static_cast<uint32_t>(head_), row0,
                     rows, col0, cols);
    }
    Stat* acc = scratch_.acc + (row0 - row_begin_) * d_cols_;
    for (int i = 0; i < rows; ++i) {
      Stat* s = scratch_.s + i * kBlockN;
      if (!plain) rule_.apply(s, row0 + i, col0, vec_cols, /*slope=*/nullptr);
      const int64_t row = row0 - row_begin_ + i;
      const Stat rescale = softmax_row<Math>(
          s, scratch_.p + i * (kBlockN / Math::kPair), vec_cols, factor,
          dropout ? scratch_.keep + i * (kBlockN / 8) : nullptr, scratch_.row_max + row,
          scratch_.row_sum + row);
      if (rescale != 1) {
        for (int j = 0; j < d_cols_; ++j) acc[i * d_cols_ + j] *= rescale;
      }
    }
    gemm<Math, kBlockN / Math::kPair>(rows, d_cols_, (cols + Math::kPair - 1) / Math::kPair,
                                      scratch_.p, 1, scratch_.v, d_cols_, acc, d_cols_,
                                      /*accumulate=*/true);
  }

  void store_outputs() {
    Element* out = sequence_.template q_rows<Element>(params_.out, head_);
    Stat* lse = sequence_.template row_stats<Stat>(params_.lse, head_);
    const Stat keep_scale = static_cast<Stat>(philox::keep_scale(params_.drop_threshold));
    for (int64_t row = row_begin_; row < row_end_; ++row) {
      const int64_t i = row - row_begin_;
      const Stat sum = scratch_.row_sum[i];
      const bool empty = sum == 0;
      store_row(out + row * params_.out.row_stride, scratch_.acc + i * d_cols_, head_dim_,
                empty ? Stat{0} : keep_scale / sum);
      lse[row * params_.lse.row_stride] =
          empty ? -kInfinity<Stat>
                : scratch_.row_max[i] * static_cast<Stat>(kLn2) + std::log(sum);
    }
  }

  Word* q_block(int64_t row0) { return scratch_.q + (row0 - row_begin_) * d_words_; }

  const AttentionParams& params_;
  const Sequence sequence_;
  const int64_t head_, kv_head_, row_begin_, row_end_;
  const int head_dim_, d_words_, d_cols_;
  Scratch<Math> scratch_;
  const Keys<Stat> keys_;
  const ScoreRule<Stat> rule_;
};

// The rows of a unit: few enough that every thread has several units, but whole blocks.
int64_t rows_per_unit(const AttentionParams& params, int64_t max_seqlen_q) {
  const int64_t heads = params.batch_size * params.num_heads;
  int64_t rows = kMaxChunkRows;
  while (rows > kBlockM && heads * (max_seqlen_q / rows + 1) < 4 * params.num_threads) {
    rows = round_up(rows / 2, kBlockM);
    if (rows == 2 * kBlockM) rows = kBlockM;
  }
  return min_of(rows, round_up(max_of<int64_t>(max_seqlen_q, 1), kBlockM));
}

template <class Math, class Element>
void run(const AttentionParams& params) {
  int64_t max_seqlen_q = 0, max_seqlen_k = 0;
  for (int64_t i = 0; i < params.batch_size; ++i) {
    const Sequence sequence(params, i);
    max_seqlen_q = max_of(max_seqlen_q, sequence.seqlen_q);
    max_seqlen_k = max_of(max_seqlen_k, sequence.seqlen_k);
  }
  if (max_seqlen_q == 0 || params.num_heads == 0) return;
  const int64_t chunk_rows = rows_per_unit(params, max_seqlen_q);
  const int64_t chunks = (max_seqlen_q + chunk_rows - 1) / chunk_rows;
  const int64_t d_words = (params.head_dim + Math::kPair - 1) / Math::kPair;
  const int64_t d_cols = round_up(params.head_dim, kLanes<typename Math::Stat>);
  const size_t bytes = Scratch<Math>(nullptr, chunk_rows, max_seqlen_k, d_words, d_cols).bytes;
  const Order order(params);
  parallel_for(params.batch_size * params.num_heads * chunks, params.num_threads, bytes,
               [&](int64_t unit, void* block) {
                 const int64_t chunk = unit % chunks, head = unit / chunks % params.num_heads;
                 const int64_t sequence = order[unit / chunks / params.num_heads];
                 const int64_t seqlen_q = Sequence(params, sequence).seqlen_q;
                 const int64_t begin = chunk * chunk_rows;
                 const int64_t end = min_of(begin + chunk_rows, seqlen_q);
                 if (begin >= end) return;
                 ForwardUnit<Math, Element>(params, sequence, head, begin, end, chunk_rows, block)
                     .run();
               });
}

}  // namespace

void attention_fwd(const AttentionParams& params) {
  dispatch_element(params.dtype, [&](auto math, auto element) {
    run<decltype(math), decltype(element)>(params);
  });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
