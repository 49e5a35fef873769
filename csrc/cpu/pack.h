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

// Fills columns [0, round_up(rows, kLanes)) for head_dim words; `ld` is at least that many.
template <class Math, class Element, class IsLive>
inline void pack_columns(typename Math::Word* dst, ptrdiff_t ld, const Element* src,
                         ptrdiff_t row_stride, int rows, int head_dim, const IsLive& is_live) {
  using Word = typename Math::Word;
  constexpr int kPair = Math::kPair;
  const int words = (head_dim + kPair - 1) / kPair;
  const int cols = static_cast<int>(round_up(rows, kLanes<Word>));
  for (int i = 0; i < cols; ++i) {
    const Element* row = src + i * row_stride;
    if (i >= rows || !is_live(i)) {
      for (int p = 0; p < words; ++p) dst[p * ld + i] = Word{0};
      continue;
    }
    for (int p = 0; p < head_dim / kPair; ++p) dst[p * ld + i] = Math::word(row + p * kPair, 1);
    if (head_dim % kPair != 0) {
      const Element last[2] = {row[head_dim - 1], Element{}};
      dst[(words - 1) * ld + i] = Math::word(last, 1);
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
