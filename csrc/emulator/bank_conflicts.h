// How many times a warp's access to shared memory has to go round, because two lanes want different
// words of one bank.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "emulator/clock.h"
#include "emulator/control.h"
#include "emulator/site.h"

namespace fastattn::emulator {

// By "file:line".
using ConflictSites = std::map<std::string, uint64_t>;

// Rounds beyond the first, of lanes that each access `bytes` at offsets[lane]. A round serves 128
// bytes: 32 lanes with up to 4 bytes each, 16 with 8, or 8 with 16, in the order of the lanes.
uint64_t bank_conflicts(const uint32_t* offsets, int lanes, uint32_t bytes);

// Lanes run one after the other here; this puts the accesses together again that a warp does at
// once.
class AccessLog {
 public:
  void reset();
  void add(int lane, uint32_t offset, uint32_t bytes, bool write, Site site);
  // Counts what was added since the last time. To be called where the lanes meet.
  void count(Counters& counters, ConflictSites& sites);

 private:
  struct Access {
    uint32_t offset;
    uint8_t bytes;
    bool write;
    Site site;
  };

  std::array<std::vector<Access>, kWarpSize> lanes_;
  bool empty_ = true;
};

}  // namespace fastattn::emulator
