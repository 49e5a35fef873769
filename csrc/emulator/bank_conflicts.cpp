#include "emulator/bank_conflicts.h"

#include <algorithm>

#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

constexpr uint32_t kWordBytes = 4, kBanks = 32;

// The most different words that the lanes of one round want of a bank, minus one.
uint64_t conflicts_of_round(const uint32_t* offsets, int lanes, uint32_t words_each) {
  uint32_t words[kBanks][kWarpSize];
  uint8_t counts[kBanks] = {};
  uint8_t most = 1;
  for (int i = 0; i < lanes; ++i) {
    for (uint32_t j = 0; j < words_each; ++j) {
      const uint32_t word = offsets[i] / kWordBytes + j, bank = word % kBanks;
      uint32_t* const end = words[bank] + counts[bank];
      if (std::find(words[bank], end, word) != end) continue;
      words[bank][counts[bank]++] = word;
      most = std::max(most, counts[bank]);
    }
  }
  return most - 1u;
}

}  // namespace

uint64_t bank_conflicts(const uint32_t* offsets, int lanes, uint32_t bytes) {
  const uint32_t words_each = std::max(bytes / kWordBytes, 1u);
  const int lanes_a_round = static_cast<int>(kBanks / words_each);
  uint64_t conflicts = 0;
  for (int first = 0; first < lanes; first += lanes_a_round) {
    const int count = std::min(lanes_a_round, lanes - first);
    conflicts += conflicts_of_round(offsets + first, count, words_each);
  }
  return conflicts;
}

void AccessLog::reset() {
  for (auto& accesses : lanes_) accesses.clear();
  empty_ = true;
}

void AccessLog::add(int lane, uint32_t offset, uint32_t bytes, bool write, Site site) {
  lanes_[lane].push_back({offset, static_cast<uint8_t>(bytes), write, site});
  empty_ = false;
}

// Lanes that are at the same place of the source go on together; the others wait for their turn, as
// they would in a branch.
void AccessLog::count(Counters& counters, ConflictSites& sites) {
  if (empty_) return;
  std::array<size_t, kWarpSize> next{};
  for (int leader = 0; leader < kWarpSize;) {
    if (next[leader] == lanes_[leader].size()) {
      ++leader;
      continue;
    }
    const Access& access = lanes_[leader][next[leader]];
    uint32_t offsets[kWarpSize];
    int lanes = 0;
    for (int i = leader; i < kWarpSize; ++i) {
      if (next[i] == lanes_[i].size()) continue;
      const Access& other = lanes_[i][next[i]];
      if (other.site.line != access.site.line || other.site.file != access.site.file) continue;
      if (other.bytes != access.bytes || other.write != access.write) continue;
      offsets[lanes++] = other.offset;
      ++next[i];
    }
    const uint64_t conflicts = bank_conflicts(offsets, lanes, access.bytes);
    ++(access.write ? counters.sts : counters.lds);
    (access.write ? counters.sts_conflicts : counters.lds_conflicts) += conflicts;
    if (conflicts) sites[to_string(access.site)] += conflicts;
  }
  reset();
}

}  // namespace fastattn::emulator
