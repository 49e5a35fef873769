// One tile of the backward pass, shared by the gradients of q, k, v and of the bias:
//
//   s  = q @ k.T                          recomputed
//   p  = 2^(s2 - lse2)                    s2 by the rule of scores.h, lse2 = log2(e) * lse
//   dp = keep * keep_scale * (dout @ v.T)
//   ds = p * (dp - delta)                 delta = rowsum(out * dout) - dlse
//
// and, with a softcap, ds is multiplied by its derivative before it reaches q and k.
#pragma once

#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/scores.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

constexpr int kGradBlockM = 48;  // query rows of a tile
constexpr int kGradBlockN = 64;  // keys of a tile
static_assert(kGradBlockM % kMicroRows == 0 && kGradBlockM % philox::kTile == 0, "whole tiles");
static_assert(kGradBlockN % philox::kTile == 0, "whole tiles");

// The sizes that every array of the backward pass is made of.
template <class Math>
struct GradShape {
  using Stat = typename Math::Stat;
  int head_dim;
  int64_t d_words, d_cols, max_rows, max_cols;

  explicit GradShape(const AttentionParams& params)
      : head_dim(static_cast<int>(params.head_dim)),
        d_words((params.head_dim + Math::kPair - 1) / Math::kPair),
        d_cols(round_up(params.head_dim, kLanes<Stat>)),
        max_rows(0),
        max_cols(0) {
    for (int64_t i = 0; i < params.batch_size; ++i) {
      const Sequence sequence(params, i);
      max_rows = max_of(max_rows, round_up(sequence.seqlen_q, kGradBlockM));
      max_cols = max_of(max_cols, round_up(sequence.seqlen_k, kGradBlockN));
    }
  }
};

// The queries of one head of one sequence, packed for every product they take part in.
template <class Math>
struct Queries {
  using Stat = typename Math::Stat;
  using Word = typename Math::Word;
  Word *q_cols, *dout_cols;  // by blocks: (block, d_words, kGradBlockM)
  Word *q_rows, *dout_rows;  // (rows / kPair, d_cols)
  Stat *lse2, *delta;
  bool* block_is_live;  // false: no gradient reaches the rows of the block

  void carve(Carver& carver, const GradShape<Math>& shape) {
    q_cols = carver.take<Word>(shape.max_rows * shape.d_words);
    dout_cols = carver.take<Word>(shape.max_rows * shape.d_words);
    q_rows = carver.take<Word>(shape.max_rows / Math::kPair * shape.d_cols);
    dout_rows = carver.take<Word>(shape.max_rows / Math::kPair * shape.d_cols);
    lse2 = carver.take<Stat>(shape.max_rows);
    delta = carver.take<Stat>(shape.max_rows);
    block_is_live = carver.take<bool>(shape.max_rows / kGradBlockM);
  }

  // A row whose dout and dlse are zero contributes nothing to any gradient. It is packed as zero
  // with lse2 = inf, hence p = 0, so that whatever a padding row holds stays out of dk and dv; a
  // block of such rows is skipped. A row that sees no key (lse = -inf) is the same.
  template <class Element>
  void load(const AttentionBwdParams& params, const GradShape<Math>& shape,
            const Sequence& sequence, int64_t head) {
    const Element* q = sequence.template q_rows<const Element>(params.q, head);
    const Element* dout = sequence.template q_rows<const Element>(params.dout, head);
    for (int64_t row0 = 0; row0 < sequence.seqlen_q; row0 += kGradBlockM) {
      const int rows = static_cast<int>(min_of<int64_t>(kGradBlockM, sequence.seqlen_q - row0));
      bool any = false;
      for (int i = 0; i < rows; ++i)
        any |= load_row_stats<Element>(params, sequence, head, row0 + i);
      block_is_live[row0 / kGradBlockM] = any;
      if (!any) continue;
      const auto is_live = [&](int i) { return lse2[row0 + i] != kInfinity<Stat>; };
      const auto pack = [&](Word* cols, Word* by_row, const Element* src, int64_t stride) {
        pack_columns<Math>(cols + row0 * shape.d_words, kGradBlockM, src + row0 * stride, stride,
                           rows, shape.head_dim, is_live);
        pack_rows<Math>(by_row + row0 / Math::kPair * shape.d_cols, shape.d_cols,
                        src + row0 * stride, stride, rows, shape.head_dim, is_live);
      };
      pack(q_cols, q_rows, q, params.q.row_stride);
      pack(dout_cols, dout_rows, dout, params.dout.row_stride);
    }
  }

 private:
  // Fills lse2 and delta of a row; returns whether the row is live.
  template <class Element>
  bool load_row_stats(const AttentionBwdParams& params, const Sequence& sequence, int64_t head,
                      int64_t row) {
    const Element* dout =
        sequence.template q_rows<const Element>(params.dout, head) + row * params.dout.row_stride;
    const Element* out =
        sequence.template q_rows<const Element>(params.out, head) + row * params.out.row_stride;
    constexpr int kStep = kLanes<Stat>;
    prefetch_row<false>(dout + kRowsAhead * params.dout.row_stride,
                        static_cast<int>(params.head_dim));
    prefetch_row<false>(out + kRowsAhead * params.out.row_stride,
                        static_cast<int>(params.head_dim));
    Vec<Stat> products = splat<Stat>(0), nonzero = splat<Stat>(0);
    int64_t j = 0;
    for (; j + kStep <= params.head_dim; j += kStep) {
      const Vec<Stat> d = load_stats<Stat>(dout + j);
      products += load_stats<Stat>(out + j) * d;
      nonzero += d != 0 ? splat<Stat>(1) : splat<Stat>(0);
    }
    Stat sum = reduce_add<Stat>(products);
    bool live = reduce_add<Stat>(nonzero) != 0;
    for (; j < params.head_dim; ++j) {
      const Stat d = to_float(dout[j]);
      live |= d != 0;
      sum += static_cast<Stat>(to_float(out[j])) * d;
    }
    if (params.dlse.data != nullptr) {
      const Stat dlse =
          sequence.template row_stats<const Stat>(params.dlse, head)[row * params.dlse.row_stride];
      live |= dlse != 0;
      sum -= dlse;
    }
    const Stat lse =
        sequence.template row_stats<const Stat>(params.lse, head)[row * params.lse.row_stride];
    live &= lse != -kInfinity<Stat>;
    lse2[row] = live ? lse * static_cast<Stat>(kLog2E) : kInfinity<Stat>;
    delta[row] = live ? sum : 0;
    return live;
  }
};

// A block of keys, packed for every product it takes part in.
template <class Math>
struct KeyBlock {
  using Word = typename Math::Word;
  Word *k_cols, *v_cols;  // (d_words, kGradBlockN)
  Word* k_rows;           // (kGradBlockN / kPair, d_cols)

  void carve(Carver& carver, const GradShape<Math>& shape) {
    k_cols = carver.take<Word>(kGradBlockN * shape.d_words);
    v_cols = carver.take<Word>(kGradBlockN * shape.d_words);
    k_rows = carver.take<Word>(kGradBlockN / Math::kPair * shape.d_cols);
  }

  template <class Element, class IsLive>
  void load(const AttentionParams& params, const GradShape<Math>& shape, const Sequence& sequence,
            int64_t kv_head, int64_t col0, int cols, const IsLive& is_live) {
    const Element* k =
        sequence.template k_rows<const Element>(params.k, kv_head) + col0 * params.k.row_stride;
    const Element* v =
        sequence.template k_rows<const Element>(params.v, kv_head) + col0 * params.v.row_stride;
    pack_columns<Math>(k_cols, kGradBlockN, k, params.k.row_stride, cols, shape.head_dim, is_live);
    pack_columns<Math>(v_cols, kGradBlockN, v, params.v.row_stride, cols, shape.head_dim, is_live);
    pack_rows<Math>(k_rows, shape.d_cols, k, params.k.row_stride, cols, shape.head_dim, is_live);
  }
};

// The gradient of a tile of scores. With one number a word, `p` and `ds` serve as words by row and
// by column; with pairs, each layout has its own array.
template <class Math>
struct ScoreGradTile {
  using Stat = typename Math::Stat;
  using Word = typename Math::Word;
  static constexpr int kLd = kGradBlockN;
  Stat *p, *ds;              // (kGradBlockM, kGradBlockN): keep * p without keep_scale, and ds
  Word *p_pairs, *ds_pairs;  // (kGradBlockM / kPair, kGradBlockN), words along the rows
  Word* ds_rows;             // (kGradBlockM, kGradBlockN / kPair), words along the columns
  Stat* slope;               // derivative of the softcap
  uint16_t* keep;

  void carve(Carver& carver) {
    constexpr int kSize = kGradBlockM * kGradBlockN;
    p = carver.take<Stat>(kSize);
    ds = carver.take<Stat>(kSize);
    slope = carver.take<Stat>(kSize);
    keep = carver.take<uint16_t>(KeepMask<kGradBlockM>::size(kGradBlockN));
    if constexpr (Math::kPair == 1) {
      p_pairs = p, ds_pairs = ds, ds_rows = ds;
    } else {
      p_pairs = carver.take<Word>(kSize / Math::kPair);
      ds_pairs = carver.take<Word>(kSize / Math::kPair);
      ds_rows = carver.take<Word>(kSize / Math::kPair);
    }
  }

  // Computes the tile of rows [row0, row0 + rows) and columns [col0, col0 + cols). ds is the
  // gradient of the scores after the softcap if `before_softcap` is false.
  void compute(const AttentionParams& params, const GradShape<Math>& shape,
               const ScoreRule<Stat>& rule, const Sequence& sequence, int64_t head,
               const Queries<Math>& queries, const KeyBlock<Math>& keys, int64_t row0, int rows,
               int64_t col0, int cols, bool before_softcap) {
    const int vec_cols = static_cast<int>(round_up(cols, kLanes<Stat>));
    const int d_words = static_cast<int>(shape.d_words);
    gemm<Math, 1>(rows, vec_cols, d_words, queries.q_cols + row0 * d_words, kGradBlockM,
                  keys.k_cols, kGradBlockN, p, kLd, /*accumulate=*/false);
    gemm<Math, 1>(rows, vec_cols, d_words, queries.dout_cols + row0 * d_words, kGradBlockM,
                  keys.v_cols, kGradBlockN, ds, kLd, /*accumulate=*/false);
    const bool plain = rule.is_plain(row0, rows, col0, vec_cols);
    const bool dropout = params.drop_threshold != 0;
    if (dropout) {
      KeepMask<kGradBlockM>(keep).draw(params.seed, params.drop_threshold,
                                       static_cast<uint32_t>(sequence.index),
                                       static_cast<uint32_t>(head), row0, rows, col0, cols);
    }
    const Stat factor = plain ? rule.factor() : 1;
    const Stat keep_scale = static_cast<Stat>(philox::keep_scale(params.drop_threshold));
    for (int i = 0; i < rows; ++i) {
      if (!plain) rule.apply(p + i * kLd, row0 + i, col0, vec_cols, slope + i * kLd);
      row_grad(i, vec_cols, dropout, factor, queries.lse2[row0 + i], queries.delta[row0 + i],
               keep_scale);
      if (before_softcap && rule.has_softcap()) {
        for (int j = 0; j < vec_cols; ++j) ds[i * kLd + j] *= slope[i * kLd + j];
      }
    }
    pack_pairs(rows, vec_cols);
  }

 private:
  // Turns the products of one row into weights and gradients.
  void row_grad(int row, int cols, bool dropout, Stat factor, Stat lse2, Stat delta,
                Stat keep_scale) {
    Stat *row_p = p + row * kLd, *row_ds = ds + row * kLd;
    const KeepMask<kGradBlockM> mask(keep);
    for (int j = 0; j < cols; j += kLanes<Stat>) {
      const Vec<Stat> weight = exp2(load(row_p + j) * factor - lse2);
      Vec<Stat> dp = load(row_ds + j), kept = weight;
      if (dropout) {
        const uint32_t bits = mask.bits(row, j);
        dp = keep_lanes<Stat>(dp, bits) * keep_scale;
        kept = keep_lanes<Stat>(weight, bits);
      }
      store(row_p + j, kept);
      store(row_ds + j, weight * (dp - delta));
    }
  }

  void pack_pairs(int rows, int cols) {
    if constexpr (Math::kPair == 2) {
      for (int i = 0; i < rows; i += 2) {
        const bool both = i + 1 < rows;
        for (int j = 0; j < cols; j += kLanes<Stat>) {
          const Vec<Stat> zero = splat<Stat>(0);
          const Vec<Stat> p0 = load(p + i * kLd + j), ds0 = load(ds + i * kLd + j);
          const Vec<Stat> p1 = both ? load(p + (i + 1) * kLd + j) : zero;
          const Vec<Stat> ds1 = both ? load(ds + (i + 1) * kLd + j) : zero;
          store(p_pairs + i / 2 * kLd + j, Math::pair_rows(p0, p1));
          store(ds_pairs + i / 2 * kLd + j, Math::pair_rows(ds0, ds1));
          Math::store_weights(ds_rows + i * (kLd / 2), j, ds0);
          if (both) Math::store_weights(ds_rows + (i + 1) * (kLd / 2), j, ds1);
        }
      }
    } else {
      (void)rows, (void)cols;
    }
  }
};

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
