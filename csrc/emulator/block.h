// One block of emulated threads, and the OS thread's place in it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <vector>

#include "emulator/bank_conflicts.h"
#include "emulator/clock.h"
#include "emulator/control.h"
#include "emulator/fibre.h"
#include "emulator/global_memory.h"
#include "emulator/instructions.h"
#include "emulator/shared_memory.h"
#include "emulator/types.h"

namespace fastattn::emulator {

constexpr uint32_t kAllLanesMask = 0xffffffffu;
constexpr int kNumBarriers = 16;
constexpr int kGroupWarps = 4;  // of a warpgroup

// What a thread can wait in.
enum class Operation : uint8_t {
  kNone,
  kSyncWarp,
  kShuffle,
  kBallot,
  kLdmatrix,
  kMma,
  kSyncThreads,
  kNamedBarrier,
  kMbarrierWait,
  kWgmma,
  kWgmmaFence,
  kWgmmaCommit,
  kWgmmaWait,
};

const char* name_of(Operation operation);

// A launch, as all of its blocks see it.
struct Launch {
  Options options;
  cuda::dim3 grid, block;
  uint32_t smem_bytes;
  void (*body)(const void*);
  const void* argument;
  GlobalMemory* memory;

  std::mutex mutex;  // of what follows
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  // Ends it, with the first error.
  void fail(std::exception_ptr with);
};

struct Copy {
  uint32_t offset;  // in shared memory
  const void* src;  // 16 bytes; null: zeros
  Site site;
};

// Bytes of shared memory that a thread has written.
struct Written {
  uint32_t offset, bytes;
};

struct Thread {
  Fibre fibre;
  cuda::uint3 idx{};
  int index = 0, warp = 0, lane = 0;
  // Where it waits, or waited last.
  Operation operation = Operation::kNone;
  Site site;
  // Asynchronous copies, the oldest first; group_ends are the lengths of `copies` at each commit.
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
  // What it has written since its last fence_proxy_async.
  std::vector<Written> unfenced;
};

// What the lanes of a warp hand to each other in one instruction.
struct Exchange {
  // A cache line for each lane: the operands on its arrival, and the result once all have arrived.
  struct alignas(64) Lane {
    uint64_t value;
    uint32_t addr;
    uint32_t a[4], b[2];
    float c[4];
  };
  Lane lanes[kWarpSize];
  uint32_t bits;
};

// Sums of products under way, kept from the lanes until they wait for them.
struct Accumulators {
  std::array<float*, kWarpSize> where;
  std::vector<std::array<float, 4>> values;  // by column tile, then by lane
  int under_way = 0;                         // products that add to them
};

// A product that was issued; it reads shared memory when it is waited for.
struct IssuedProduct {
  Product product;
  std::array<std::array<uint32_t, 4>, kWarpSize> a;  // the left factor, if in registers
  float* key;                                        // of its accumulators: where lane 0's are
  Clock clock;
  Site site;
};

struct Warp {
  uint32_t alive = 0, runnable = 0;  // masks of lanes
  uint32_t arrived = 0;              // at the instruction below
  Operation operation = Operation::kNone;
  Site site;
  int operand = 0;  // what else must be the same in all lanes, such as a barrier's number
  Clock clock;
  // Two, used in turn: a lane may arrive at the next instruction before another has fetched its
  // result of this one, but that next one is not executed before all have arrived.
  std::array<Exchange, 2> exchanges;
  int turn = 0;
  AccessLog accesses;
  // Products, the oldest first; product_ends are the lengths of `products` at each commit.
  std::vector<IssuedProduct> products;
  std::vector<size_t> product_ends;
  std::map<float*, Accumulators> accumulators;
  size_t num_products = 0;  // since the block began
  bool fenced = false;      // by wgmma_fence, for the products to come
};

// A barrier in shared memory.
struct Mbarrier {
  uint32_t count, arrived = 0;
  uint32_t phase = 0;       // the one under way
  uint32_t waiting = 0;     // mask of warps
  Clock arriving, learned;  // what those who arrived know, in this phase and in the ones before
};

struct Barrier {
  uint32_t arrived = 0, waiting = 0;  // masks of warps
  int num_warps = 0;                  // that it is for; 0: all that have not exited
  Clock clock;
};

class Random {
 public:
  explicit Random(uint64_t seed);
  uint32_t next();

 private:
  uint64_t state_;
};

// Kept from block to block for the memory it holds.
struct Block {
  Launch* launch = nullptr;
  cuda::uint3 idx{};
  uint64_t index = 0;
  int num_threads = 0, num_warps = 0;

  Fibre os_thread;
  Stacks stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  uint32_t ready = 0;        // mask of warps with a lane that can run
  uint32_t alive_warps = 0;  // mask
  std::array<Barrier, kNumBarriers> barriers;
  std::map<uint32_t, Mbarrier> mbarriers;  // by offset in shared memory
  // The products of each warpgroup: its warps must issue the same ones.
  std::vector<std::vector<std::array<uint64_t, 2>>> group_products;
  Random random{0};

  SharedMemory shared;
  GlobalMemory::Cache global_cache;
  Counters counters;
  ConflictSites conflict_sites;

  void run(Launch& launch, uint64_t index);

  Warp& warp() { return warps[current->warp]; }
  Actor actor() { return {current->warp, current->lane, &warp().clock}; }
  GlobalMemory::Place thread_place() const { return {index, current->index}; }

  // Scheduling, by the thread that runs.
  void wait();  // until woken; its lane must have been taken out of `runnable`
  void suspend(Thread& thread);
  void wake(int warp, uint32_t lanes);
  void let_others_run();     // sometimes
  [[noreturn]] void stop();  // the whole block
  void exit_thread();

 private:
  void exit_warp(int warp);
  Thread* pick();
  void prepare(Launch& launch, uint64_t index);
  [[noreturn]] void report_deadlock();
};

// The block of this OS thread; null outside of kernels. A plain pointer, without the check of an
// initialiser, as almost everything starts from it.
extern __thread Block* current_block;

// What a lane finds when it goes on.
struct Results {
  const Exchange& exchange;
  const Exchange::Lane& own;
};

void arrive(Operation operation, int operand, Site site);

// An instruction of the whole warp: a lane deposits its operands, and the last one to arrive calls
// execute(exchange), which says whether the warp goes on at once. `operand` is what must be the
// same in all lanes.
template <class Deposit, class Execute>
Results in_whole_warp(Operation operation, int operand, Site site, const Deposit& deposit,
                      const Execute& execute) {
  Block& block = *current_block;
  Thread& thread = *block.current;
  Warp& warp = block.warp();
  Exchange& exchange = warp.exchanges[warp.turn];
  Exchange::Lane& own = exchange.lanes[thread.lane];
  arrive(operation, operand, site);
  deposit(own);
  bool goes_on = false;
  if (warp.arrived == kAllLanesMask) {
    warp.arrived = 0;
    warp.turn ^= 1;
    if (block.launch->options.count_conflicts) {
      warp.accesses.count(block.counters, block.conflict_sites);
    }
    goes_on = execute(exchange);
  }
  if (goes_on) {
    block.wake(thread.warp, kAllLanesMask);
    block.let_others_run();
  } else {
    block.suspend(thread);
    block.wait();
  }
  return {exchange, own};
}

}  // namespace fastattn::emulator
