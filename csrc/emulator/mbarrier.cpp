// Barriers in shared memory, that count arrivals phase by phase.
// PTX ISA 8.0, "Parallel Synchronization and Communication Instructions: mbarrier".
#include "emulator/block.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

constexpr uint32_t kBytes = 8;

// The barrier at an address, for who knows that it was made.
Mbarrier& find(Block& block, uint32_t addr, const Actor& actor, const char* what, Site site) {
  const uint32_t offset = block.shared.offset_of(addr, kBytes, what, site);
  const auto found = block.mbarriers.find(offset);
  if (found == block.mbarriers.end()) {
    report(site, text("barrier: %s at byte %u of shared memory, where no mbarrier_init was", what,
                      offset));
  }
  block.shared.read(offset, kBytes, actor, what, site);
  return found->second;
}

void pass(Block& block, const Mbarrier& barrier, int warp) {
  block.warps[warp].clock.learn(barrier.learned);
  block.warps[warp].clock.tick(warp);
}

void complete(Block& block, Mbarrier& barrier) {
  barrier.learned.learn(barrier.arriving);
  barrier.arriving.reset();
  barrier.arrived = 0;
  ++barrier.phase;
  for (int w = 0; w < block.num_warps; ++w) {
    if (!(barrier.waiting >> w & 1)) continue;
    pass(block, barrier, w);
    block.wake(w, kAllLanesMask);
  }
  barrier.waiting = 0;
}

}  // namespace

void mbarrier_init(uint32_t addr, uint32_t count, Site site) {
  Block& block = *current_block;
  const uint32_t offset = block.shared.offset_of(addr, kBytes, "mbarrier_init", site);
  if (count == 0) report(site, "barrier: an mbarrier must count at least one arrival; got 0");
  block.shared.write(offset, kBytes, block.actor(), "mbarrier_init", site);
  Mbarrier barrier;
  barrier.count = count;
  block.mbarriers[offset] = barrier;
}

// Hands on what the warp did before its last sync_warp or barrier. A GPU also hands on what the
// lane alone did since; no kernel needs that.
void mbarrier_arrive(uint32_t addr, Site site) {
  Block& block = *current_block;
  Mbarrier& barrier = find(block, addr, block.actor(), "mbarrier_arrive", site);
  ++block.counters.mbarrier_arrivals;
  barrier.arriving.learn_before(block.warp().clock, block.current->warp);
  if (++barrier.arrived == barrier.count) complete(block, barrier);
}

void mbarrier_wait(uint32_t addr, uint32_t parity, Site site) {
  const int operand = static_cast<int>(addr * 2 + parity);
  in_whole_warp(
      Operation::kMbarrierWait, operand, site, [](Exchange::Lane&) {},
      [&](Exchange&) {
        Block& block = *current_block;
        const int w = block.current->warp;
        const Actor actor{w, Actor::kAllLanes, &block.warp().clock};
        Mbarrier& barrier = find(block, addr, actor, "mbarrier_wait", site);
        if (barrier.phase % 2 == parity) {
          barrier.waiting |= 1u << w;
          return false;
        }
        pass(block, barrier, w);
        return true;
      });
}

}  // namespace fastattn::emulator
