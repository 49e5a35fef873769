// What a thread reads, writes and copies.
#include <cstring>

#include "emulator/block.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

constexpr uint32_t kCopyBytes = 16;

void finish(Block& block, const Copy& copy) {
  if (copy.src) {
    std::memcpy(block.shared.at(copy.offset), copy.src, kCopyBytes);
  } else {
    std::memset(block.shared.at(copy.offset), 0, kCopyBytes);
  }
}

}  // namespace

const void* shared_read(uint32_t addr, uint32_t bytes, Site site) {
  Block& block = *current_block;
  const uint32_t offset = block.shared.offset_of(addr, bytes, "lds", site);
  if (block.launch->options.count_conflicts) {
    block.warp().accesses.add(block.current->lane, offset, bytes, /*write=*/false, site);
  }
  block.shared.read(offset, bytes, block.actor(), "lds", site);
  return block.shared.at(offset);
}

void* shared_write(uint32_t addr, uint32_t bytes, Site site) {
  Block& block = *current_block;
  const uint32_t offset = block.shared.offset_of(addr, bytes, "sts", site);
  if (block.launch->options.count_conflicts) {
    block.warp().accesses.add(block.current->lane, offset, bytes, /*write=*/true, site);
  }
  block.shared.write(offset, bytes, block.actor(), "sts", site);
  block.current->unfenced.push_back({offset, bytes});
  return block.shared.at(offset);
}

void global_read(const void* src, uint32_t bytes, Site site) {
  Block& block = *current_block;
  block.counters.bytes_loaded += bytes;
  block.launch->memory->read(static_cast<const char*>(src), bytes, block.thread_place(),
                             block.global_cache, "ldg", site);
}

void global_write(void* dst, uint32_t bytes, Site site) {
  Block& block = *current_block;
  block.counters.bytes_stored += bytes;
  block.launch->memory->write(static_cast<const char*>(dst), bytes, block.thread_place(),
                              block.global_cache, site);
}

void cp_async(uint32_t dst, const void* src, bool pred, Site site) {
  constexpr int kFirstWithAsyncCopies = 80;
  Block& block = *current_block;
  const uint32_t offset = block.shared.offset_of(dst, kCopyBytes, "cp_async_16", site);
  if (reinterpret_cast<uintptr_t>(src) % kCopyBytes != 0) {
    report(site, "misaligned: the source of cp_async_16 must be a multiple of 16 bytes");
  }
  if (pred) {
    block.launch->memory->read(static_cast<const char*>(src), kCopyBytes, block.thread_place(),
                               block.global_cache, "cp_async_16", site);
    block.counters.bytes_loaded += kCopyBytes;
  }
  ++block.counters.cp_async;
  block.shared.write(offset, kCopyBytes, block.actor(), "cp_async_16", site);
  const Copy copy{offset, pred ? src : nullptr, site};
  const Options& options = block.launch->options;
  if (options.defer_copies && options.compute_capability >= kFirstWithAsyncCopies) {
    block.shared.begin_copy(offset);
    block.current->copies.push_back(copy);
  } else {
    finish(block, copy);
    block.current->unfenced.push_back({offset, kCopyBytes});
  }
}

void cp_async_commit() {
  Thread& thread = *current_block->current;
  thread.group_ends.push_back(thread.copies.size());
}

// Copies land here, as late as they can.
void cp_async_wait(int pending) {
  Block& block = *current_block;
  Thread& thread = *block.current;
  if (thread.group_ends.size() <= static_cast<size_t>(pending)) return;
  const size_t num_groups = thread.group_ends.size() - pending;
  const size_t num_copies = thread.group_ends[num_groups - 1];
  for (size_t i = 0; i < num_copies; ++i) {
    finish(block, thread.copies[i]);
    block.shared.end_copy(thread.copies[i].offset, block.actor());
    thread.unfenced.push_back({thread.copies[i].offset, kCopyBytes});
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + num_copies);
  thread.group_ends.erase(thread.group_ends.begin(), thread.group_ends.begin() + num_groups);
  for (size_t& end : thread.group_ends) end -= num_copies;
}

void fence_proxy_async() {
  Block& block = *current_block;
  for (const Written& written : block.current->unfenced) {
    block.shared.fence(written.offset, written.bytes, block.actor());
  }
  block.current->unfenced.clear();
}

}  // namespace fastattn::emulator
