// Runs the blocks of a grid over OS threads, and the threads of a block as fibres.
#include <algorithm>
#include <thread>

#include "emulator/block.h"
#include "emulator/control_internal.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

// Entered once by each emulated thread.
void run_thread() {
  Fibre::entered();
  const Launch& launch = *current_block->launch;
  launch.body(launch.argument);
  current_block->exit_thread();
}

cuda::uint3 place(uint64_t index, const cuda::dim3& size) {
  return {static_cast<uint32_t>(index % size.x), static_cast<uint32_t>(index / size.x % size.y),
          static_cast<uint32_t>(index / size.x / size.y)};
}

uint64_t count_of(const cuda::dim3& size) { return uint64_t{size.x} * size.y * size.z; }

[[noreturn]] void refuse(const std::string& message) { throw Finding("launch: " + message); }

void check_shape(const Launch& launch) {
  constexpr uint32_t kMaxThreads = kWarpSize * kMaxWarps, kMaxGridYZ = 65535;
  const cuda::dim3 &grid = launch.grid, &block = launch.block;
  if (count_of(block) == 0 || count_of(block) > kMaxThreads || count_of(block) % kWarpSize != 0) {
    refuse(text("a block must have a multiple of 32 threads, at most 1024; got (%u, %u, %u)",
                block.x, block.y, block.z));
  }
  if (count_of(grid) == 0 || grid.x > 0x7fffffffu || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    refuse(text("a grid must have 1 to 2147483647 x 65535 x 65535 blocks; got (%u, %u, %u)", grid.x,
                grid.y, grid.z));
  }
  const int capability = launch.options.compute_capability;
  const uint32_t limit = shared_memory_limit(capability);
  if (launch.smem_bytes > limit) {
    refuse(
        text("a block's shared memory must be at most %u bytes for compute capability %d.%d; got "
             "%u",
             limit, capability / 10, capability % 10, launch.smem_bytes));
  }
}

// In which order blocks begin. Kernels must not depend on it.
uint64_t block_at(uint64_t position, uint64_t num_blocks, const Options& options) {
  if (options.schedule == Schedule::kInOrder) return position;
  if (options.schedule == Schedule::kReverse) return num_blocks - 1 - position;
  return (position + options.seed) % num_blocks;
}

}  // namespace

cuda::uint3 thread_idx() { return current_block->current->idx; }
cuda::uint3 block_idx() { return current_block->idx; }
cuda::dim3 block_dim() { return current_block->launch->block; }
cuda::dim3 grid_dim() { return current_block->launch->grid; }

void Block::prepare(Launch& with, uint64_t block_index) {
  launch = &with;
  index = block_index;
  idx = place(block_index, with.grid);
  num_threads = static_cast<int>(count_of(with.block));
  num_warps = num_threads / kWarpSize;
  group_products.assign(num_warps / kGroupWarps + 1, {});
  random = Random(with.options.seed * 0x100000001b3u + block_index);
  ready = alive_warps = 0;
  global_cache = {};
  barriers.fill(Barrier{});
  mbarriers.clear();
  shared.reset(with.smem_bytes, num_warps,
               {with.options.check_races, with.options.check_uninitialised});
  stacks.reserve(num_threads, with.options.stack_bytes);
  if (threads.size() < static_cast<size_t>(num_threads)) threads.resize(num_threads);
  if (warps.size() < static_cast<size_t>(num_warps)) warps.resize(num_warps);
  for (int w = 0; w < num_warps; ++w) {
    Warp& warp = warps[w];
    warp.alive = kAllLanesMask;
    warp.runnable = warp.arrived = 0;
    warp.clock.reset();
    warp.clock.tick(w);
    warp.accesses.reset();
    warp.products.clear();
    warp.product_ends.clear();
    warp.accumulators.clear();
    warp.num_products = 0;
    warp.fenced = false;
    alive_warps |= 1u << w;
    wake(w, kAllLanesMask);
  }
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = threads[i];
    thread.idx = place(i, with.block);
    thread.index = i;
    thread.warp = i / kWarpSize;
    thread.lane = i % kWarpSize;
    thread.copies.clear();
    thread.group_ends.clear();
    thread.unfenced.clear();
    thread.fibre.start(stacks[i], i, run_thread);
  }
}

void Block::run(Launch& with, uint64_t block_index) {
  prepare(with, block_index);
  ++counters.blocks;
  current = &threads[0];
  current = pick();
  current_block = this;
  switch_fibre(os_thread, current->fibre);
  current_block = nullptr;
  if (with.options.count_conflicts && !with.failed) {
    for (int w = 0; w < num_warps; ++w) warps[w].accesses.count(counters, conflict_sites);
  }
}

void launch(cuda::dim3 grid, cuda::dim3 block, uint32_t smem_bytes, void (*body)(const void*),
            const void* argument) {
  GlobalMemory memory(registered_buffers());
  Launch launch{options(), grid, block, smem_bytes, body, argument, &memory, {}, {}, {}};
  check_shape(launch);
  const uint64_t num_blocks = count_of(grid);
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    try {
      const BlockLease lease;
      while (!launch.failed) {
        const uint64_t position = next++;
        if (position >= num_blocks) break;
        lease->run(launch, block_at(position, num_blocks, launch.options));
      }
    } catch (...) {  // out of memory
      launch.fail(std::current_exception());
    }
  };
  const uint64_t workers = std::min<uint64_t>(launch.options.threads, num_blocks);
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  count_launch();
  if (launch.failed) std::rethrow_exception(launch.error);
}

}  // namespace fastattn::emulator
