// Instructions of a whole warp, and the barriers of a block.
#include "emulator/block.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

void release(Block& block, Barrier& barrier) {
  for (int w = 0; w < block.num_warps; ++w) {
    if (!(barrier.waiting >> w & 1)) continue;
    block.warps[w].clock.learn(barrier.clock);
    block.warps[w].clock.tick(w);
    block.wake(w, kAllLanesMask);
  }
  barrier = Barrier{};
}

// The warp that runs arrives. Returns whether it goes on.
bool arrive_at_barrier(int id, int num_warps, bool wait, Site site) {
  Block& block = *current_block;
  Barrier& barrier = block.barriers[id];
  const int w = block.current->warp;
  const uint32_t bit = 1u << w;
  if (barrier.arrived & bit) {
    report(site, text("barrier: the warp arrives at barrier %d again before the others have", id));
  }
  if (barrier.arrived && barrier.num_warps != num_warps) {
    report(site, text("barrier: barrier %d is for %d threads here, and for %d where another warp "
                      "arrived",
                      id, num_warps * kWarpSize, barrier.num_warps * kWarpSize));
  }
  barrier.num_warps = num_warps;
  barrier.arrived |= bit;
  barrier.clock.learn(block.warps[w].clock);
  if (wait) {
    barrier.waiting |= bit;
  } else {
    block.warps[w].clock.tick(w);
  }
  const int needed = num_warps ? num_warps : __builtin_popcount(block.alive_warps);
  if (__builtin_popcount(barrier.arrived) == needed) {
    release(block, barrier);
    return true;
  }
  return !wait;
}

}  // namespace

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::kNone:
      return "no instruction";
    case Operation::kSyncWarp:
      return "sync_warp";
    case Operation::kShuffle:
      return "shfl";
    case Operation::kBallot:
      return "ballot";
    case Operation::kLdmatrix:
      return "ldmatrix";
    case Operation::kMma:
      return "mma";
    case Operation::kSyncThreads:
      return "sync_threads";
    case Operation::kNamedBarrier:
      return "named_barrier";
    case Operation::kMbarrierWait:
      return "mbarrier_wait";
    case Operation::kWgmma:
      return "wgmma";
    case Operation::kWgmmaFence:
      return "wgmma_fence";
    case Operation::kWgmmaCommit:
      return "wgmma_commit";
    case Operation::kWgmmaWait:
      return "wgmma_wait";
  }
  return "?";
}

void arrive(Operation operation, int operand, Site site) {
  Block& block = *current_block;
  Thread& thread = *block.current;
  Warp& warp = block.warp();
  thread.operation = operation;
  thread.site = site;
  if (warp.alive != kAllLanesMask) {
    report(site, text("divergence: %s while lanes of the warp have exited (those left: %08x)",
                      name_of(operation), warp.alive));
  }
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.operand = operand;
    warp.site = site;
  } else if (warp.operation != operation || warp.operand != operand ||
             warp.site.line != site.line) {
    report(site, text("divergence: the lane is at %s while others of its warp are at %s at %s",
                      name_of(operation), name_of(warp.operation), to_string(warp.site).c_str()));
  }
  warp.arrived |= 1u << thread.lane;
}

int lane() { return current_block->current->lane; }

void sync_warp(Site site) {
  in_whole_warp(
      Operation::kSyncWarp, 0, site, [](Exchange::Lane&) {},
      [](Exchange&) {
        Block& block = *current_block;
        block.warp().clock.tick(block.current->warp);
        ++block.counters.sync_warps;
        return true;
      });
}

uint64_t shuffle(uint64_t value, int src_lane, Site site) {
  const Results results = in_whole_warp(
      Operation::kShuffle, 0, site, [&](Exchange::Lane& lane) { lane.value = value; },
      [](Exchange&) {
        ++current_block->counters.shuffles;
        return true;
      });
  return results.exchange.lanes[src_lane].value;
}

uint32_t ballot(bool predicate, Site site) {
  const Results results = in_whole_warp(
      Operation::kBallot, 0, site, [&](Exchange::Lane& lane) { lane.value = predicate; },
      [](Exchange& exchange) {
        exchange.bits = 0;
        for (int i = 0; i < kWarpSize; ++i) {
          exchange.bits |= static_cast<uint32_t>(exchange.lanes[i].value) << i;
        }
        ++current_block->counters.shuffles;
        return true;
      });
  return results.exchange.bits;
}

void sync_threads(Site site) {
  in_whole_warp(
      Operation::kSyncThreads, 0, site, [](Exchange::Lane&) {},
      [&](Exchange&) {
        ++current_block->counters.sync_threads;
        return arrive_at_barrier(0, 0, /*wait=*/true, site);
      });
}

void named_barrier(int id, int num_threads, bool wait, Site site) {
  if (id < 1 || id >= kNumBarriers) {
    report(site, text("barrier: a named barrier must be 1 to 15; got %d", id));
  }
  if (num_threads < kWarpSize || num_threads % kWarpSize != 0 ||
      num_threads > current_block->num_threads) {
    report(site,
           text("barrier: the number of threads must be a multiple of 32 up to the block's %d; "
                "got %d",
                current_block->num_threads, num_threads));
  }
  in_whole_warp(
      Operation::kNamedBarrier, id, site, [](Exchange::Lane&) {},
      [&](Exchange&) {
        ++current_block->counters.named_barriers;
        return arrive_at_barrier(id, num_threads / kWarpSize, wait, site);
      });
}

// sync_threads waits for the warps that have not exited.
void Block::exit_warp(int warp) {
  alive_warps &= ~(1u << warp);
  Barrier& barrier = barriers[0];
  if (barrier.arrived && barrier.arrived == alive_warps) release(*this, barrier);
}

}  // namespace fastattn::emulator
