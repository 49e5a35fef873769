// A block's shared memory, and what is known of every four bytes of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "emulator/clock.h"
#include "emulator/site.h"

namespace fastattn::emulator {

// Who touches memory: a lane of a warp, or all of its lanes in one instruction.
struct Actor {
  static constexpr int kAllLanes = 32;
  int warp;
  int lane;
  const Clock* clock;
};

struct MemoryChecks {
  bool races;
  bool uninitialised;
};

class SharedMemory {
 public:
  void reset(uint32_t bytes, int num_warps, MemoryChecks checks);

  // Reports an address outside of the block's memory, or one that is no multiple of `bytes`.
  uint32_t offset_of(uint32_t addr, uint32_t bytes, const char* what, Site site) const;
  char* at(uint32_t offset) { return data_.get() + offset; }

  // Report what is wrong with an access, and remember it.
  void read(uint32_t offset, uint32_t bytes, const Actor& actor, const char* what, Site site);
  void write(uint32_t offset, uint32_t bytes, const Actor& actor, const char* what, Site site);

  // Of 16 bytes by a product that a warp issued when its clock was `issued`; `actor` is the warp at
  // the end of the product.
  void read_by_product(uint32_t offset, const Clock& issued, const Actor& actor, Site site);
  // What the actor has written there may be read by products of those who learn of it.
  void fence(uint32_t offset, uint32_t bytes, const Actor& actor);

  // An asynchronous copy of 16 bytes was begun (after write()), or has ended.
  void begin_copy(uint32_t offset);
  void end_copy(uint32_t offset, const Actor& actor);

 private:
  static constexpr uint32_t kCellBytes = 4;

  // Packed moments: the time, which of the cell's bytes, and the lane. 0: never.
  using Moment = uint32_t;

  struct Cell {
    Site write_site, read_site;  // of the last ones, by these warps
    Moment write;
    uint8_t write_warp, read_warp;
    uint8_t initialised, in_flight;  // masks of bytes
    uint32_t fenced;                 // the time of the fence after the last write; 0: none
  };

  Moment* reads_of(uint32_t cell) { return &reads_[size_t{cell} * num_warps_]; }
  void check_read(const Cell& cell, uint32_t index, uint32_t mask, const Actor&, const char* what,
                  Site site) const;
  void check_write(const Cell& cell, uint32_t index, uint32_t mask, const Actor&, const char* what,
                   Site site);

  std::unique_ptr<char, void (*)(void*)> data_{nullptr, nullptr};
  uint32_t bytes_ = 0, capacity_ = 0;
  int num_warps_ = 0;
  MemoryChecks checks_{};
  std::vector<Cell> cells_;
  std::vector<Moment> reads_;  // the last one of each cell by each warp
};

}  // namespace fastattn::emulator
