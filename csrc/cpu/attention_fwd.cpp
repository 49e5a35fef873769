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
  uint16_t* keep;
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
    keep = carver.take<uint16_t>(KeepMask<kBlockM>::size(kBlockN));
    bytes = carver.used();
  }
};

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
    const Vec<Stat> none = splat(-kInfinity<Stat>);
    for (int64_t i = 0; i < row_end_ - row_begin_; i += kLanes<Stat>) {
      store(scratch_.row_max + i, none);
      store(scratch_.row_sum + i, splat<Stat>(0));
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
    gemm<Math, 1>(rows, vec_cols, d_words_, q_block(row0), kBlockM, scratch_.k, kBlockN, scratch_.s,
                  kBlockN, /*accumulate=*/false);
    Stat factor = rule_.factor();
    if (!rule_.is_plain(row0, rows, col0, vec_cols)) {
      for (int i = 0; i < rows; ++i) {
        rule_.apply(scratch_.s + i * kBlockN, row0 + i, col0, vec_cols, /*slope=*/nullptr);
      }
      factor = 1;
    }
    if (params_.drop_threshold != 0) {
      KeepMask<kBlockM>(scratch_.keep)
          .draw(params_.seed, params_.drop_threshold, static_cast<uint32_t>(sequence_.index),
                static_cast<uint32_t>(head_), row0, rows, col0, cols);
    }
    for (int i = 0; i < rows; i += kLanes<Stat>) {
      softmax_rows(row0 - row_begin_ + i, i, min_of(rows - i, kLanes<Stat>), vec_cols, factor);
    }
    gemm<Math, kBlockN / Math::kPair>(rows, d_cols_, (cols + Math::kPair - 1) / Math::kPair,
                                      scratch_.p, 1, scratch_.v, d_cols_,
                                      scratch_.acc + (row0 - row_begin_) * d_cols_, d_cols_,
                                      /*accumulate=*/true);
  }

  // Turns up to kLanes rows of a tile into weights, and updates their statistics and sums. The
  // rows' maxima and sums are vectors with a row in each lane, so no row waits for another's.
  // `row` and `tile_row` are the first row in the chunk and in the tile.
  void softmax_rows(int64_t row, int tile_row, int rows, int cols, Stat factor) {
    Vec<Stat> lanes[kLanes<Stat>];
    for (int i = 0; i < kLanes<Stat>; ++i) {
      lanes[i] = splat(-kInfinity<Stat>);
      if (i >= rows) continue;
      const Stat* s = scratch_.s + (tile_row + i) * kBlockN;
      for (int j = 0; j < cols; j += kLanes<Stat>) lanes[i] = max<Stat>(lanes[i], load(s + j));
    }
    const Vec<Stat> tile_max = reduce_rows<Stat>(lanes, max<Stat>) * factor;
    const Vec<Stat> old_max = load(scratch_.row_max + row), new_max = max<Stat>(tile_max, old_max);
    const Vec<Stat> shift = new_max == -kInfinity<Stat> ? splat<Stat>(0) : new_max;
    for (int i = 0; i < kLanes<Stat>; ++i) {
      lanes[i] = i < rows ? weights(tile_row + i, cols, factor, shift[i]) : splat<Stat>(0);
    }
    const Vec<Stat> rescale = exp2(old_max - shift);  // 0 for the first keys: nothing to rescale
    const Vec<Stat> sum = reduce_rows<Stat>(lanes, [](auto a, auto b) { return a + b; });
    store(scratch_.row_sum + row, load(scratch_.row_sum + row) * rescale + sum);
    store(scratch_.row_max + row, new_max);
    for (int i = 0; i < rows; ++i) {
      if (rescale[i] == 1 || old_max[i] == -kInfinity<Stat>) continue;
      Stat* acc = scratch_.acc + (row + i) * d_cols_;
      for (int j = 0; j < d_cols_; ++j) acc[j] *= rescale[i];
    }
  }

  // Replaces the scores of one row by weights; returns the lanes of their sum, dropped ones
  // included.
  Vec<Stat> weights(int tile_row, int cols, Stat factor, Stat shift) {
    const Stat* s = scratch_.s + tile_row * kBlockN;
    Word* p = scratch_.p + tile_row * (kBlockN / Math::kPair);
    const KeepMask<kBlockM> keep(scratch_.keep);
    Vec<Stat> sum = splat<Stat>(0);
    for (int j = 0; j < cols; j += kLanes<Stat>) {
      Vec<Stat> weight = exp2(load(s + j) * factor - shift);
      sum += weight;
      if (params_.drop_threshold != 0) weight = keep_lanes<Stat>(weight, keep.bits(tile_row, j));
      Math::store_weights(p, j, weight);
    }
    return sum;
  }

  void store_outputs() {
    Element* out = sequence_.template q_rows<Element>(params_.out, head_);
    Stat* lse = sequence_.template row_stats<Stat>(params_.lse, head_);
    const Stat keep_scale = static_cast<Stat>(philox::keep_scale(params_.drop_threshold));
    for (int64_t row = row_begin_; row < row_end_; ++row) {
      prefetch_row<true>(out + (row + kRowsAhead) * params_.out.row_stride, head_dim_);
      const int64_t i = row - row_begin_;
      const Stat sum = scratch_.row_sum[i];
      const bool empty = scratch_.row_max[i] == -kInfinity<Stat>;
      store_row(out + row * params_.out.row_stride, scratch_.acc + i * d_cols_, head_dim_,
                empty ? Stat{0} : keep_scale / sum);
      lse[row * params_.lse.row_stride] =
          empty ? -kInfinity<Stat> : scratch_.row_max[i] * static_cast<Stat>(kLn2) + std::log(sum);
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
  parallel_for(
      params.batch_size * params.num_heads * chunks, params.num_threads, bytes,
      [&](int64_t unit, void* block) {
        const int64_t chunk = unit % chunks, head = unit / chunks % params.num_heads;
        const int64_t sequence = order[unit / chunks / params.num_heads];
        const int64_t seqlen_q = Sequence(params, sequence).seqlen_q;
        const int64_t begin = chunk * chunk_rows;
        const int64_t end = min_of(begin + chunk_rows, seqlen_q);
        if (begin >= end) return;
        ForwardUnit<Math, Element>(params, sequence, head, begin, end, chunk_rows, block).run();
      });
}

}  // namespace

void attention_fwd(const AttentionParams& params) {
  dispatch_element(params.dtype, [&](auto math, auto element) {
    run<decltype(math), decltype(element)>(params);
  });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
