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
#elif defined(__AVX2__)
  // Kept where the threshold minus the draw saturates to zero.
  const __m256i missing = _mm256_subs_epu16(_mm256_set1_epi16(static_cast<int16_t>(drop_threshold)),
                                            reinterpret_cast<__m256i>(words));
  const __m256i kept = _mm256_cmpeq_epi16(missing, _mm256_setzero_si256());
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
  return static_cast<uint32_t>(_mm_movemask_epi8(bytes));
#elif defined(__SSE2__)
  const __m128i missing = _mm_subs_epu16(_mm_set1_epi16(static_cast<int16_t>(drop_threshold)),
                                         reinterpret_cast<__m128i>(words));
  const __m128i kept = _mm_cmpeq_epi16(missing, _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(kept, _mm_setzero_si128())));
#else
  uint32_t kept = 0;
  for (int i = 0; i < kLanes<uint32_t>; ++i) {
    kept |= static_cast<uint32_t>((words[i] & 0xFFFFu) >= drop_threshold) << (2 * i);
    kept |= static_cast<uint32_t>((words[i] >> 16) >= drop_threshold) << (2 * i + 1);
  }
  return kept;
#endif
}

// The mask of a tile of up to kRows rows: bit col % 16 of column tile col / 16 and row `row`.
template <int kRows>
class KeepMask {
 public:
  static constexpr int size(int cols) { return cols / philox::kTile * kRows; }
  explicit KeepMask(uint16_t* bits) : bits_(bits) {}

  // Draws rows [row0, row0 + rows) and columns [col0, col0 + cols) of one head of one sequence.
  // row0 and col0 are multiples of 16, and whole tiles of the dropout rule are drawn.
  void draw(uint64_t seed, uint32_t drop_threshold, uint32_t sequence, uint32_t head, int64_t row0,
            int rows, int64_t col0, int cols) {
    constexpr int kCalls = kLanes<uint32_t>;  // calls side by side; 4 of them serve one row
    const Vec<uint32_t> lane = iota<uint32_t>();
    for (int row = 0; row < rows; row += philox::kTile) {
      const auto row_tile = static_cast<uint32_t>((row0 + row) / philox::kTile);
      for (int col = 0; col < cols; col += philox::kTile) {
        const auto col_tile = static_cast<uint32_t>((col0 + col) / philox::kTile);
        for (int call = 0; call < philox::kCallsPerTile; call += kCalls) {
          const PhiloxWords words =
              philox4x32(seed, lane + (col_tile * philox::kCallsPerTile + call), splat(row_tile),
                         splat(head), splat(sequence));
          uint16_t* bits = bits_ + col / philox::kTile * kRows + row + call / 4;
          store_rows(bits, words.word[0], words.word[1], drop_threshold);
          store_rows(bits + 8, words.word[2], words.word[3], drop_threshold);
        }
      }
    }
  }

  // The bits of the vector of scores that starts at column `col` of a row, in the low lanes.
  uint32_t bits(int row, int col) const {
    return static_cast<uint32_t>(bits_[col / philox::kTile * kRows + row]) >> (col % philox::kTile);
  }

 private:
  // The words that decide on columns 0-7 and 8-15 of neighbouring rows, 8 columns a byte.
  static void store_rows(uint16_t* bits, Vec<uint32_t> left, Vec<uint32_t> right,
                         uint32_t drop_threshold) {
    const uint32_t left_bits = kept_bits(left, drop_threshold);
    const uint32_t right_bits = kept_bits(right, drop_threshold);
#if defined(__AVX512F__)
    const __m128i rows = _mm_unpacklo_epi8(_mm_cvtsi32_si128(static_cast<int>(left_bits)),
                                           _mm_cvtsi32_si128(static_cast<int>(right_bits)));
    std::memcpy(bits, &rows, 8);
#else
    for (int i = 0; i < kLanes<uint32_t> / 4; ++i) {
      bits[i] = static_cast<uint16_t>(((left_bits >> (8 * i)) & 0xFFu) |
                                      (((right_bits >> (8 * i)) & 0xFFu) << 8));
    }
#endif
  }

  uint16_t* bits_;
};

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
