#include "emulator/global_memory.h"

#include <algorithm>

#include "emulator/report.h"

namespace fastattn::emulator {

GlobalMemory::GlobalMemory(const std::vector<Buffer>& buffers) : buffers_(buffers) {
  std::vector<const Buffer*> sorted;
  for (const Buffer& buffer : buffers_) sorted.push_back(&buffer);
  std::sort(sorted.begin(), sorted.end(),
            [](const Buffer* a, const Buffer* b) { return a->begin < b->begin; });
  for (size_t i = 0; i < sorted.size();) {
    Region region{sorted[i]->begin, sorted[i]->end, nullptr};
    bool writable = false;
    for (; i < sorted.size() && sorted[i]->begin < region.end; ++i) {
      region.end = std::max(region.end, sorted[i]->end);
      writable = writable || sorted[i]->writable;
    }
    if (!writable) continue;
    // One more, as the region may begin at an odd address.
    const size_t granules = static_cast<size_t>(region.end - region.begin) / kGranule + 2;
    region.touched = std::make_unique<Touched[]>(granules);
    regions_.push_back(std::move(region));
  }
}

const Buffer& GlobalMemory::find(const char* first, uint32_t bytes, bool writable, size_t& cached,
                                 const char* what, Site site) const {
  const auto serves = [&](const Buffer& buffer) {
    return buffer.contains(first, first + bytes) && (buffer.writable || !writable);
  };
  if (cached < buffers_.size() && serves(buffers_[cached])) return buffers_[cached];
  const auto found = std::find_if(buffers_.begin(), buffers_.end(), serves);
  if (found != buffers_.end()) {
    cached = static_cast<size_t>(found - buffers_.begin());
    return *found;
  }
  for (const Buffer& buffer : buffers_) {
    if (!buffer.contains(first, first + bytes)) continue;
    report(site, text("read-only: %s of %u bytes at byte %td of %s, which is not to be written",
                      what, bytes, first - buffer.begin, buffer.name.c_str()));
  }
  // The buffer that the address is nearest to is likely the one that was meant.
  const auto distance = [&](const Buffer& b) {
    return first < b.begin ? b.begin - first : std::max<ptrdiff_t>(first + bytes - b.end, 0);
  };
  const auto nearest =
      std::min_element(buffers_.begin(), buffers_.end(),
                       [&](const Buffer& a, const Buffer& b) { return distance(a) < distance(b); });
  if (nearest == buffers_.end()) {
    report(site, text("out of bounds: %s of %u bytes, and no buffer is registered", what, bytes));
  }
  report(site, text("out of bounds: %s of %u bytes at byte %td of %s, which has %td", what, bytes,
                    first - nearest->begin, nearest->name.c_str(), nearest->end - nearest->begin));
}

GlobalMemory::Region* GlobalMemory::region_of(const char* first) {
  const auto after =
      std::upper_bound(regions_.begin(), regions_.end(), first,
                       [](const char* p, const Region& region) { return p < region.begin; });
  if (after == regions_.begin()) return nullptr;
  Region& region = *(after - 1);
  return first < region.end ? &region : nullptr;
}

namespace {

void check_alignment(const char* first, uint32_t bytes, const char* what, Site site) {
  if (reinterpret_cast<uintptr_t>(first) % bytes == 0) return;
  report(site,
         text("misaligned: %s of %u bytes at an address that is no multiple of that", what, bytes));
}

}  // namespace

void GlobalMemory::read(const char* src, uint32_t bytes, Place place, Cache& cache,
                        const char* what, Site site) {
  check_alignment(src, bytes, what, site);
  const Buffer& buffer = find(src, bytes, /*writable=*/false, cache.read, what, site);
  Region* region = region_of(src);
  if (!region) return;
  const uint64_t self = place.block + 1;
  const size_t begin = (src - region->begin) / kGranule;
  const size_t end = (src + bytes - region->begin + kGranule - 1) / kGranule;
  for (size_t i = begin; i < end; ++i) {
    if (const uint64_t writer = region->touched[i].writer.load(std::memory_order_relaxed)) {
      report(site, text("%s reads byte %td of %s, which block number %llu writes in this launch; "
                        "what is written cannot be read before the kernel ends",
                        what, src - buffer.begin, buffer.name.c_str(),
                        static_cast<unsigned long long>((writer - 1) / kMaxThreads)));
    }
    const uint64_t reader = region->touched[i].reader.exchange(self, std::memory_order_relaxed);
    if (reader != 0 && reader != self) region->touched[i].reader.store(kSeveral);
  }
}

void GlobalMemory::write(const char* dst, uint32_t bytes, Place place, Cache& cache, Site site) {
  check_alignment(dst, bytes, "stg", site);
  const Buffer& buffer = find(dst, bytes, /*writable=*/true, cache.write, "stg", site);
  Region* region = region_of(dst);
  const uint64_t self = place.block * kMaxThreads + place.thread + 1;
  const size_t begin = (dst - region->begin) / kGranule;
  const size_t end = (dst + bytes - region->begin + kGranule - 1) / kGranule;
  for (size_t i = begin; i < end; ++i) {
    const uint64_t writer = region->touched[i].writer.exchange(self, std::memory_order_relaxed);
    const uint64_t reader = region->touched[i].reader.load(std::memory_order_relaxed);
    if (writer != 0 && writer != self) {
      report(site, text("two writers: thread %llu of block number %llu writes byte %td of %s too",
                        static_cast<unsigned long long>((writer - 1) % kMaxThreads),
                        static_cast<unsigned long long>((writer - 1) / kMaxThreads),
                        dst - buffer.begin, buffer.name.c_str()));
    }
    if (reader != 0 && reader != place.block + 1) {
      report(site, text("stg writes byte %td of %s, which another block reads in this launch",
                        dst - buffer.begin, buffer.name.c_str()));
    }
  }
}

}  // namespace fastattn::emulator
