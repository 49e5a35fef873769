// The dropout rules of fastattn/dropout.py: which random bits decide on which element.
#pragma once

#include <cstdint>

namespace fastattn::philox {

constexpr int kRounds = 7;  // the fewest that pass BigCrush, Salmon et al. 2011, table 2
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyIncrement0 = 0x9E3779B9u, kKeyIncrement1 = 0xBB67AE85u;

// Scores are drawn in tiles of 16 x 16: 32 calls of 8 draws each. Call `lane` of a tile serves
// rows lane / 4 and lane / 4 + 8, and columns 2 * (lane % 4) + {0, 1} and the same + 8.
constexpr int kTile = 16;
constexpr int kCallsPerTile = 32;
constexpr uint32_t kDraws = 1u << 16;

// Hidden states are drawn by row, in blocks of 256 columns: 32 calls of 8 draws each. Call c of a
// block serves columns 2 * c + {0, 1} of each of its four groups of 64, one group a word.
constexpr int kHiddenBlock = 256;
constexpr int kHiddenGroup = 64;
constexpr int kCallsPerHiddenBlock = 32;
constexpr uint32_t kHiddenMark = 0x48494444u;  // "HIDD", where attention has a sequence's index

// What is kept is multiplied by one over the probability of keeping.
inline double keep_scale(uint32_t drop_threshold) {
  return static_cast<double>(kDraws) / (kDraws - drop_threshold);
}

}  // namespace fastattn::philox
