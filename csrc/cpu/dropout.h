// The dropout mask of a tile of scores, by the rule of common/philox.h.
#pragma once

#include "common/philox.h"
#include "cpu/simd.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

// Four words of Philox4x32 for kLanes<uint32_t> calls at once.
struct PhiloxWords {
  Vec<uint32_t> word[4];
};

inline PhiloxWords philox4x32(uint64_t seed, Vec<uint32_t> c0, Vec<uint32_t> c1, Vec<uint32_t> c2,
                              Vec<uint32_t> c3) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 16
  for (int round = 0; round < philox::kRounds; ++round) {
    Vec<uint32_t> high0, low0, high1, low1;
    multiply_wide(c0, philox::kMultiplier0, &high0, &low0);
    multiply_wide(c2, philox::kMultiplier1, &high1, &low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += philox::kKeyIncrement0;
    key1 += philox::kKeyIncrement1;
  }
  return {{c0, c1, c2, c3}};
}

// Bit i of the result: 16-bit draw i of the words is kept.
inline uint32_t kept_bits(Vec<uint32_t> words, uint32_t drop_threshold) {
#if defined(__AVX512F__)
  return _mm512_cmpge_epu16_mask(reinterpret_cast<__m512i>(words),
                                 _mm512_set1_epi16(static_cast<int16_t>(drop_threshold)));
#else
  uint32_t kept = 0;
  for (int i = 0; i < kLanes<uint32_t>; ++i) {
    kept |= static_cast<uint32_t>((words[i] & 0xFFFFu) >= drop_threshold) << (2 * i);
    kept |= static_cast<uint32_t>((words[i] >> 16) >= drop_threshold) << (2 * i + 1);
  }
  return kept;
#endif
}

// Fills the mask of rows [row0, row0 + rows) and columns [col0, col0 + cols); row0 and col0 are
// multiples of 16, and whole tiles are written. Bit col % 8 of
// keep[(row - row0) * row_bytes + (col - col0) / 8] is set where the weight is kept.
inline void fill_keep_mask(uint8_t* keep, int row_bytes, uint64_t seed, uint32_t drop_threshold,
                           uint32_t sequence, uint32_t head, int64_t row0, int rows, int64_t col0,
                           int cols) {
  constexpr int kCalls = kLanes<uint32_t>;  // calls side by side; 4 of them serve one row
  constexpr int kRowsPerVec = kCalls / 4;
  const Vec<uint32_t> lane = iota<uint32_t>();
  for (int row = 0; row < rows; row += philox::kTile) {
    const auto row_tile = static_cast<uint32_t>((row0 + row) / philox::kTile);
    for (int col = 0; col < cols; col += philox::kTile) {
      const auto col_tile = static_cast<uint32_t>((col0 + col) / philox::kTile);
      for (int call = 0; call < philox::kCallsPerTile; call += kCalls) {
        const PhiloxWords words =
            philox4x32(seed, lane + (col_tile * philox::kCallsPerTile + call), splat(row_tile),
                       splat(head), splat(sequence));
        for (int w = 0; w < 4; ++w) {
          const uint32_t kept = kept_bits(words.word[w], drop_threshold);
          uint8_t* first = keep + (row + 8 * (w / 2) + call / 4) * row_bytes + col / 8 + w % 2;
          for (int i = 0; i < kRowsPerVec; ++i) {
            first[i * row_bytes] = static_cast<uint8_t>(kept >> (8 * i));
          }
        }
      }
    }
  }
}

// The mask bits of the vector of scores that starts at column `col` of a row of the mask.
template <class Stat>
inline uint32_t keep_bits(const uint8_t* row, int col) {
  uint16_t bits = row[col / 8];
  if (kLanes<Stat> > 8) bits |= static_cast<uint16_t>(row[col / 8 + 1] << 8);
  return static_cast<uint32_t>(bits) >> (col % 8);
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
