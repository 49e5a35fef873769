// What a caller of emulated kernels sets, registers and reads: the emulator's only header for code
// outside of kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastattn::emulator {

// In which order threads run between the points where they wait for each other.
enum class Schedule {
  kRandom,   // drawn from the seed
  kInOrder,  // the lowest warp and lane that can run
  kReverse,  // the highest
};

struct Options {
  uint64_t seed = 1;
  int threads = 1;  // OS threads that blocks are spread over
  Schedule schedule = Schedule::kRandom;
  // The part to be, as 10 * major + minor: how much shared memory a block gets, and whether there
  // are cp.async, m16n8k16 and bfloat16 products (from 80 on), and products of warpgroups (90).
  int compute_capability = 90;
  bool check_races = true;
  bool check_uninitialised = true;
  bool defer_copies = true;        // cp.async lands at its wait, not at once
  bool count_conflicts = true;     // bank conflicts of lds and sts; those of ldmatrix always are
  size_t stack_bytes = 64 * 1024;  // of each emulated thread
};

// Sums over all launches since the last reset. One warp executing an instruction counts once.
struct Counters {
  uint64_t launches = 0, blocks = 0;
  uint64_t mma = 0;    // m16n8k16 products, however they are made
  uint64_t wgmma = 0;  // products of a warpgroup, by warp, each several of the above
  uint64_t ldmatrix = 0, ldmatrix_conflicts = 0;
  uint64_t lds = 0, lds_conflicts = 0;
  uint64_t sts = 0, sts_conflicts = 0;
  uint64_t shuffles = 0;  // shfl*, ballot
  uint64_t sync_threads = 0, named_barriers = 0, sync_warps = 0;
  uint64_t mbarrier_arrivals = 0;
  uint64_t cp_async = 0;                        // copies of 16 bytes, by thread, and zero-fills
  uint64_t bytes_loaded = 0, bytes_stored = 0;  // global memory; copies included
  uint64_t switches = 0;                        // between emulated threads
};

// What is wrong with a kernel: what happened, where in its source, in which block and thread.
class Finding : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A wrong argument, not a finding about a kernel: std::invalid_argument.
void set_options(const Options& options);
Options options();

Counters counters();
void reset_counters();
// Where bank conflicts happened and how many, since the last reset: ("attention_fwd.cu:120", 64),
// most first.
std::vector<std::pair<std::string, uint64_t>> conflict_sites();

// Global memory that kernels launched by this OS thread may touch while the object lives; anything
// else is out of bounds. Ranges may overlap, as views of one tensor do. Scopes nest.
class GlobalBuffers {
 public:
  GlobalBuffers();
  ~GlobalBuffers();
  GlobalBuffers(const GlobalBuffers&) = delete;
  GlobalBuffers& operator=(const GlobalBuffers&) = delete;

  // `name` appears in findings. A null pointer or no bytes: nothing is added.
  void add(std::string name, const void* data, size_t bytes, bool writable);

 private:
  size_t first_;  // how many this OS thread had before
};

}  // namespace fastattn::emulator
