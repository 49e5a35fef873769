// The process-wide state behind control.h.
#pragma once

#include <cstdint>
#include <memory>

#include "emulator/block.h"

namespace fastattn::emulator {

// Bytes a block may have on a part; throws std::invalid_argument for parts not known.
uint32_t shared_memory_limit(int compute_capability);

// Lends a block with the memory of earlier ones, and adds up its counters when it comes back.
class BlockLease {
 public:
  BlockLease();
  ~BlockLease();
  BlockLease(const BlockLease&) = delete;
  BlockLease& operator=(const BlockLease&) = delete;
  Block* operator->() const { return block_.get(); }

 private:
  std::unique_ptr<Block> block_;
};

void count_launch();

}  // namespace fastattn::emulator
