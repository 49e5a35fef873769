// Global memory: which of it a kernel may touch, and which block wrote or read what.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/site.h"

namespace fastattn::emulator {

struct Buffer {
  std::string name;
  const char* begin;
  const char* end;
  bool writable;
  bool contains(const char* first, const char* last) const { return begin <= first && last <= end; }
};

// The buffers of one launch.
class GlobalMemory {
 public:
  explicit GlobalMemory(const std::vector<Buffer>& buffers);

  // The buffers that the last accesses of a block were in.
  struct Cache {
    size_t read = 0, write = 0;
  };

  // A thread of the launch: the number of its block, and its own in there.
  struct Place {
    uint64_t block;
    int thread;
  };

  // Report what is wrong with an access, and remember it.
  void read(const char* src, uint32_t bytes, Place place, Cache&, const char* what, Site site);
  void write(const char* dst, uint32_t bytes, Place place, Cache&, Site site);

 private:
  // Of two bytes of memory that may be written: the thread that wrote them, and the block that read
  // them, both counted from 1; 0 if there is none.
  struct Touched {
    std::atomic<uint64_t> writer{0}, reader{0};
  };
  static constexpr size_t kGranule = 2;
  static constexpr uint64_t kMaxThreads = 1024;
  static constexpr uint64_t kSeveral = ~uint64_t{0};

  // Overlapping buffers, at least one of which is writable, merged.
  struct Region {
    const char* begin;
    const char* end;
    std::unique_ptr<Touched[]> touched;
  };

  const Buffer& find(const char* first, uint32_t bytes, bool writable, size_t& cached,
                     const char* what, Site site) const;
  Region* region_of(const char* first);

  std::vector<Buffer> buffers_;
  std::vector<Region> regions_;  // in the order of addresses
};

// What GlobalBuffers of this OS thread hold.
std::vector<Buffer>& registered_buffers();

}  // namespace fastattn::emulator
