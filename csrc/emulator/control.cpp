#include "emulator/control.h"

#include <algorithm>
#include <array>
#include <mutex>

#include "emulator/control_internal.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

struct State {
  std::mutex mutex;
  Options options;
  Counters counters;
  ConflictSites conflict_sites;
  std::vector<std::unique_ptr<Block>> idle;
};

State& state() {
  static State state;
  return state;
}

constexpr uint64_t Counters::* kCounters[] = {
    &Counters::launches,
    &Counters::blocks,
    &Counters::mma,
    &Counters::wgmma,
    &Counters::ldmatrix,
    &Counters::ldmatrix_conflicts,
    &Counters::lds,
    &Counters::lds_conflicts,
    &Counters::sts,
    &Counters::sts_conflicts,
    &Counters::shuffles,
    &Counters::sync_threads,
    &Counters::named_barriers,
    &Counters::sync_warps,
    &Counters::mbarrier_arrivals,
    &Counters::cp_async,
    &Counters::bytes_loaded,
    &Counters::bytes_stored,
    &Counters::switches,
};
static_assert(sizeof(Counters) == sizeof(kCounters) / sizeof(kCounters[0]) * sizeof(uint64_t),
              "a counter is missing");

}  // namespace

// CUDA C++ programming guide 13.0, table "Technical specifications per compute capability": shared
// memory per thread block.
uint32_t shared_memory_limit(int compute_capability) {
  switch (compute_capability) {
    case 75:
      return 64 * 1024;
    case 80:
    case 87:
      return 163 * 1024;
    case 86:
    case 89:
    case 120:
      return 99 * 1024;
    case 90:
    case 100:
      return 227 * 1024;
    default:
      throw std::invalid_argument(
          text("set_options: compute_capability must be 75, 80, 86, 87, 89, 90, 100 or 120; got %d",
               compute_capability));
  }
}

void set_options(const Options& options) {
  shared_memory_limit(options.compute_capability);
  if (options.threads < 1) {
    throw std::invalid_argument(
        text("set_options: threads must be at least 1; got %d", options.threads));
  }
  constexpr size_t kLeastStack = 16 * 1024;
  if (options.stack_bytes < kLeastStack) {
    throw std::invalid_argument(text("set_options: stack_bytes must be at least %zu; got %zu",
                                     kLeastStack, options.stack_bytes));
  }
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().options = options;
}

Options options() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  return state().options;
}

Counters counters() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  return state().counters;
}

void reset_counters() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().counters = {};
  state().conflict_sites.clear();
}

std::vector<std::pair<std::string, uint64_t>> conflict_sites() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  std::vector<std::pair<std::string, uint64_t>> sites(state().conflict_sites.begin(),
                                                      state().conflict_sites.end());
  std::stable_sort(sites.begin(), sites.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return sites;
}

void count_launch() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  ++state().counters.launches;
}

BlockLease::BlockLease() {
  {
    const std::lock_guard<std::mutex> lock(state().mutex);
    if (!state().idle.empty()) {
      block_ = std::move(state().idle.back());
      state().idle.pop_back();
    }
  }
  if (!block_) block_ = std::make_unique<Block>();
}

BlockLease::~BlockLease() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  for (const auto counter : kCounters) state().counters.*counter += block_->counters.*counter;
  for (const auto& [site, conflicts] : block_->conflict_sites) {
    state().conflict_sites[site] += conflicts;
  }
  block_->counters = {};
  block_->conflict_sites.clear();
  state().idle.push_back(std::move(block_));
}

std::vector<Buffer>& registered_buffers() {
  thread_local std::vector<Buffer> buffers;
  return buffers;
}

GlobalBuffers::GlobalBuffers() : first_(registered_buffers().size()) {}

GlobalBuffers::~GlobalBuffers() { registered_buffers().resize(first_); }

void GlobalBuffers::add(std::string name, const void* data, size_t bytes, bool writable) {
  if (!data || bytes == 0) return;
  const char* begin = static_cast<const char*>(data);
  registered_buffers().push_back({std::move(name), begin, begin + bytes, writable});
}

}  // namespace fastattn::emulator
