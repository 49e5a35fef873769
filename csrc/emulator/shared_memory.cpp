#include "emulator/shared_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "emulator/instructions.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

// A moment: the time in its high bits, then the bytes of a cell, then the lane.
constexpr int kLaneBits = 6, kMaskBits = 4, kTimeShift = kLaneBits + kMaskBits;
constexpr uint32_t kAllBytes = (1u << kMaskBits) - 1;
// Different lanes, at the same time. For writes this happens to different bytes of a cell only, and
// which lane wrote which of them is not kept.
constexpr uint32_t kSeveralLanes = 33;
constexpr uint32_t kLastTime = (1u << (32 - kTimeShift)) - 1;

uint32_t time_of(uint32_t moment) { return moment >> kTimeShift; }
uint32_t mask_of(uint32_t moment) { return moment >> kLaneBits & kAllBytes; }
uint32_t lane_of(uint32_t moment) { return moment & ((1u << kLaneBits) - 1); }

uint32_t moment_at(uint32_t time, uint32_t mask, uint32_t lane) {
  return time << kTimeShift | mask << kLaneBits | lane;
}

// The moment of an access that comes after `last`, by the same warp.
uint32_t joined(uint32_t last, uint32_t time, uint32_t mask, uint32_t lane) {
  if (last == 0 || time_of(last) != time) return moment_at(time, mask, lane);
  return moment_at(time, mask | mask_of(last), lane_of(last) == lane ? lane : kSeveralLanes);
}

// Whether what warp `warp` did at a moment happened before what the actor does. Accesses of the
// actor's own warp by `harmless_lane` always did.
bool ordered(uint32_t moment, int warp, const Actor& actor, uint32_t harmless_lane) {
  const uint32_t known = (*actor.clock)[warp], lane = lane_of(moment);
  if (warp != actor.warp) return time_of(moment) <= known;
  return time_of(moment) < known || lane == static_cast<uint32_t>(actor.lane) ||
         lane == harmless_lane;
}

const char* missing(int warp, const Actor& actor) {
  return warp == actor.warp ? "sync_warp" : "barrier";
}

std::string who(int warp, uint32_t lane) {
  if (lane >= static_cast<uint32_t>(Actor::kAllLanes)) return text("warp %d", warp);
  return text("lane %u of warp %d", lane, warp);
}

}  // namespace

void SharedMemory::reset(uint32_t bytes, int num_warps, MemoryChecks checks) {
  constexpr size_t kAlignment = 1024;
  if (bytes > capacity_ || !data_) {
    capacity_ = (bytes / kAlignment + 1) * kAlignment;
    data_ = {static_cast<char*>(std::aligned_alloc(kAlignment, capacity_)), std::free};
    if (!data_) throw std::bad_alloc();
  }
  bytes_ = bytes;
  num_warps_ = num_warps;
  checks_ = checks;
  std::memset(data_.get(), 0xff, bytes);  // NaN, in every type
  const size_t num_cells = (bytes + kCellBytes - 1) / kCellBytes;
  cells_.assign(num_cells, Cell{});
  reads_.assign(num_cells * num_warps, 0);
}

uint32_t SharedMemory::offset_of(uint32_t addr, uint32_t bytes, const char* what, Site site) const {
  const int64_t offset = int64_t{addr} - kSharedBase;
  if (offset < 0 || offset + bytes > bytes_) {
    report(site, text("out of bounds: %s of %u bytes at byte %lld of %u in shared memory", what,
                      bytes, static_cast<long long>(offset), bytes_));
  }
  if (offset % bytes != 0) {
    report(site, text("misaligned: %s of %u bytes at byte %lld of shared memory", what, bytes,
                      static_cast<long long>(offset)));
  }
  return static_cast<uint32_t>(offset);
}

void SharedMemory::check_read(const Cell& cell, uint32_t index, uint32_t mask, const Actor& actor,
                              const char* what, Site site) const {
  const uint32_t byte = index * kCellBytes;
  if (cell.in_flight & mask) {
    report(site,
           text("in flight: %s reads byte %u of shared memory, which the copy begun at %s still "
                "fills; wait for it first",
                what, byte, to_string(cell.write_site).c_str()));
  }
  if (checks_.uninitialised && (cell.initialised & mask) != mask) {
    report(site, text("uninitialised: %s reads byte %u of shared memory, which nothing has written",
                      what, byte));
  }
  if (!checks_.races || !(mask_of(cell.write) & mask)) return;
  const int writer = cell.write_warp;
  if (ordered(cell.write, writer, actor, kSeveralLanes)) return;
  report(site, text("race: %s reads byte %u of shared memory, which %s wrote at %s, with no %s in "
                    "between",
                    what, byte, who(writer, lane_of(cell.write)).c_str(),
                    to_string(cell.write_site).c_str(), missing(writer, actor)));
}

void SharedMemory::check_write(const Cell& cell, uint32_t index, uint32_t mask, const Actor& actor,
                               const char* what, Site site) {
  const uint32_t byte = index * kCellBytes;
  if (cell.in_flight & mask) {
    report(site,
           text("in flight: %s writes byte %u of shared memory, which the copy begun at %s still "
                "fills; wait for it first",
                what, byte, to_string(cell.write_site).c_str()));
  }
  if (!checks_.races) return;
  const Moment* reads = reads_of(index);
  for (int warp = 0; warp < num_warps_; ++warp) {
    if (!(mask_of(reads[warp]) & mask)) continue;
    // An instruction of the whole warp has read before any of its lanes goes on.
    if (ordered(reads[warp], warp, actor, Actor::kAllLanes)) continue;
    const std::string where =
        warp == cell.read_warp ? " at " + to_string(cell.read_site) : std::string();
    report(site,
           text("race: %s writes byte %u of shared memory, which %s has read%s, with no %s in "
                "between",
                what, byte, who(warp, lane_of(reads[warp])).c_str(), where.c_str(),
                missing(warp, actor)));
  }
  const int writer = cell.write_warp;
  if (!(mask_of(cell.write) & mask) || ordered(cell.write, writer, actor, kSeveralLanes)) return;
  report(site, text("race: %s writes byte %u of shared memory, which %s wrote at %s, with no %s in "
                    "between",
                    what, byte, who(writer, lane_of(cell.write)).c_str(),
                    to_string(cell.write_site).c_str(), missing(writer, actor)));
}

void SharedMemory::read(uint32_t offset, uint32_t bytes, const Actor& actor, const char* what,
                        Site site) {
  const uint32_t time = (*actor.clock)[actor.warp];
  for (uint32_t byte = offset; byte < offset + bytes;) {
    const uint32_t index = byte / kCellBytes, first = byte % kCellBytes;
    const uint32_t count = std::min(offset + bytes - byte, kCellBytes - first);
    const uint32_t mask = ((1u << count) - 1) << first;
    Cell& cell = cells_[index];
    check_read(cell, index, mask, actor, what, site);
    if (checks_.races) {
      cell.read_warp = static_cast<uint8_t>(actor.warp);
      cell.read_site = site;
      Moment& last = reads_of(index)[actor.warp];
      last = joined(last, time, mask, static_cast<uint32_t>(actor.lane));
    }
    byte += count;
  }
}

void SharedMemory::write(uint32_t offset, uint32_t bytes, const Actor& actor, const char* what,
                         Site site) {
  const uint32_t time = (*actor.clock)[actor.warp];
  if (time > kLastTime) report(site, "too many barriers in one block for the search for races");
  for (uint32_t byte = offset; byte < offset + bytes;) {
    const uint32_t index = byte / kCellBytes, first = byte % kCellBytes;
    const uint32_t count = std::min(offset + bytes - byte, kCellBytes - first);
    const uint32_t mask = ((1u << count) - 1) << first;
    Cell& cell = cells_[index];
    check_write(cell, index, mask, actor, what, site);
    const Moment last = cell.write_warp == actor.warp ? cell.write : 0;
    cell.write = joined(last, time, mask, static_cast<uint32_t>(actor.lane));
    cell.write_warp = static_cast<uint8_t>(actor.warp);
    cell.write_site = site;
    cell.initialised |= mask;
    cell.fenced = 0;
    byte += count;
  }
}

void SharedMemory::read_by_product(uint32_t offset, const Clock& issued, const Actor& actor,
                                   Site site) {
  constexpr uint32_t kBytes = 16;
  const Actor issuer{actor.warp, actor.lane, &issued};
  const uint32_t time = (*actor.clock)[actor.warp];
  for (uint32_t index = offset / kCellBytes; index < (offset + kBytes) / kCellBytes; ++index) {
    Cell& cell = cells_[index];
    check_read(cell, index, kAllBytes, issuer, "wgmma", site);
    if (checks_.races && cell.write != 0) {
      const int writer = cell.write_warp;
      const uint32_t known = issued[writer] - (writer == actor.warp ? 1 : 0);
      if (cell.fenced == 0 || cell.fenced > known) {
        report(site, text("fence: wgmma reads byte %u of shared memory, which %s wrote at %s, with "
                          "no fence_proxy_async by the writer before the barrier",
                          index * kCellBytes, who(writer, lane_of(cell.write)).c_str(),
                          to_string(cell.write_site).c_str()));
      }
    }
    cell.read_warp = static_cast<uint8_t>(actor.warp);
    cell.read_site = site;
    reads_of(index)[actor.warp] = moment_at(time, kAllBytes, Actor::kAllLanes);
  }
}

void SharedMemory::fence(uint32_t offset, uint32_t bytes, const Actor& actor) {
  for (uint32_t i = offset / kCellBytes; i < (offset + bytes + kCellBytes - 1) / kCellBytes; ++i) {
    cells_[i].fenced = (*actor.clock)[actor.warp];
  }
}

void SharedMemory::begin_copy(uint32_t offset) {
  constexpr uint32_t kCopyBytes = 16;
  std::memset(at(offset), 0xff, kCopyBytes);
  for (uint32_t i = 0; i < kCopyBytes / kCellBytes; ++i) {
    cells_[offset / kCellBytes + i].in_flight = kAllBytes;
  }
}

void SharedMemory::end_copy(uint32_t offset, const Actor& actor) {
  constexpr uint32_t kCopyBytes = 16;
  const uint32_t time = (*actor.clock)[actor.warp];
  for (uint32_t i = 0; i < kCopyBytes / kCellBytes; ++i) {
    Cell& cell = cells_[offset / kCellBytes + i];
    cell.in_flight = 0;
    cell.fenced = 0;
    cell.write = moment_at(time, kAllBytes, static_cast<uint32_t>(actor.lane));
  }
}

}  // namespace fastattn::emulator
