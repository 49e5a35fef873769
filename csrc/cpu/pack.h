// Copies of tensor rows in the two layouts that the matrix products read.
//
//   columns  word (p, i) of row i and head_dim words p at dst[p * ld + i]
//   rows     word (i, j) of the kPair rows from kPair * i on, and column j, at dst[i * ld + j]
//
// Rows that are not live, and what lies past the end, become zero: whatever a padding row holds,
// NaN included, is never read.
#pragma once

#include "cpu/numbers.h"
#include "cpu/parallel.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

// A head's part of a row is a few cache lines, and the next row's is far away: too short a run for
// the hardware to guess what follows. So rows are asked for this many ahead; past the end of a
// tensor that does no harm.
constexpr int kRowsAhead = 8;

template <bool kToWrite, class Element>
inline void prefetch_row(const Element* row, int head_dim) {
  constexpr int kLine = 64 / sizeof(Element);
  for (int j = 0; j < head_dim; j += kLine) __builtin_prefetch(row + j, kToWrite);
}

// One row as a column, without vectors.
template <class Math, class Element>
inline void pack_column(typename Math::Word* dst, ptrdiff_t ld, const Element* row, int begin,
                        int head_dim, bool is_live) {
  using Word = typename Math::Word;
  constexpr int kPair = Math::kPair;
  for (int p = begin; p * kPair < head_dim; ++p) {
    const Element pair[2] = {row[p * kPair],
                             (p + 1) * kPair <= head_dim ? row[p * kPair + kPair - 1] : Element{}};
    dst[p * ld] = is_live ? Math::word(pair, 1) : Word{0};
  }
}

// Fills columns [0, round_up(rows, kLanes)) for head_dim words; `ld` is at least that many.
template <class Math, class Element, class IsLive>
inline void pack_columns(typename Math::Word* dst, ptrdiff_t ld, const Element* src,
                         ptrdiff_t row_stride, int rows, int head_dim, const IsLive& is_live) {
  using Word = typename Math::Word;
  constexpr int kSide = kLanes<Word>;
  const int whole_words = head_dim / (kSide * Math::kPair) * kSide;
  for (int i0 = 0; i0 < rows; i0 += kSide) {
    const Element* row = src + i0 * row_stride;
    for (int i = 0; i < kSide; ++i) {
      prefetch_row<false>(row + (kSide + i) * row_stride, head_dim);
    }
    bool live[kSide];
    for (int i = 0; i < kSide; ++i) live[i] = i0 + i < rows && is_live(i0 + i);
    for (int p = 0; p < whole_words; p += kSide) {
      Vec<Word> block[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) {
        block[i] =
            live[i] ? Math::load_words(row + i * row_stride + p * Math::kPair) : splat<Word>(0);
      }
      transpose<Word>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store(dst + (p + i) * ld + i0, block[i]);
    }
    for (int i = 0; i < kSide; ++i) {
      pack_column<Math>(dst + i0 + i, ld, live[i] ? row + i * row_stride : src, whole_words,
                        head_dim, live[i]);
    }
  }
}

// Fills rows [0, ceil(rows / kPair)) for columns [0, ld); `ld` is at least head_dim.
template <class Math, class Element, class IsLive>
inline void pack_rows(typename Math::Word* dst, ptrdiff_t ld, const Element* src,
                      ptrdiff_t row_stride, int rows, int head_dim, const IsLive& is_live) {
  using Word = typename Math::Word;
  constexpr int kPair = Math::kPair;
  for (int i = 0; i < rows; i += kPair) {
    Word* out = dst + i / kPair * ld;
    const Element* row = src + i * row_stride;
    for (int ahead = 0; ahead < kPair; ++ahead) {
      prefetch_row<false>(row + (kRowsAhead + ahead) * row_stride, head_dim);
    }
    const bool first = is_live(i), second = kPair == 2 && i + 1 < rows && is_live(i + 1);
    if (first && (second || kPair == 1)) {
      for (int j = 0; j < head_dim; ++j) out[j] = Math::word(row + j, row_stride);
    } else {
      for (int j = 0; j < head_dim; ++j) {
        const Element pair[2] = {first ? row[j] : Element{},
                                 second ? row[row_stride + j] : Element{}};
        out[j] = Math::word(pair, 1);
      }
    }
    for (int j = head_dim; j < ld; ++j) out[j] = Word{0};
  }
}

// dst[j] = scale * src[j], rounded to the element type.
template <class Element, class Stat>
inline void store_row(Element* dst, const Stat* src, int head_dim, Stat scale) {
  for (int j = 0; j < head_dim; ++j) dst[j] = from_float<Element>(src[j] * scale);
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
