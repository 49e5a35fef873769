// Logical time: which accesses of one warp another warp can know to have happened.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace fastattn::emulator {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;

// One time for each warp of the block, in which entry w of warp w's own clock is its present and
// entry v the last moment of warp v that a barrier has told it of. What warp v did at time t
// happened before what warp w does now exactly if t <= clock_of_w[v]. (Lamport's order in the form
// of Mattern, "Virtual time and global states of distributed systems", 1989.)
class Clock {
 public:
  uint32_t operator[](int warp) const { return times_[warp]; }
  void reset() { times_.fill(0); }
  void tick(int warp) { ++times_[warp]; }
  void learn(const Clock& other) {
    for (int i = 0; i < kMaxWarps; ++i) times_[i] = std::max(times_[i], other.times_[i]);
  }
  // All but what `warp`, whose clock it is, does at its present time.
  void learn_before(const Clock& other, int warp) {
    const uint32_t before = std::max(times_[warp], other.times_[warp] - 1);
    learn(other);
    times_[warp] = before;
  }

 private:
  std::array<uint32_t, kMaxWarps> times_{};
};

}  // namespace fastattn::emulator
