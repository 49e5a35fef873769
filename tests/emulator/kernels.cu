// Kernels with one mistake each, and next to them kernels with none that look alike. A comment
// `finding: NAME` marks the line that the report about kernel NAME must name.
#include <cstring>
#include <string>

#include "cuda/device.cuh"
#include "emulator/control.h"

namespace fastattn::cuda {
namespace {

struct Params {
  const uint32_t* input;  // 1024 words, each its own index
  uint32_t* output;       // 1024 words
};

constexpr uint32_t kWarpBytes = 32 * 4;

uint32_t tid() { return thread_idx().x; }
uint32_t warp_idx() { return tid() / 32; }
uint32_t lane_idx() { return tid() % 32; }
uint32_t slot(uint32_t i) { return smem_base() + 4 * i; }

// ---- races ----

void fill(uint32_t value) {
  sts(slot(tid()), value);
  sync_threads();
}

template <bool kSync>
void hand_over_between_warps(Params params) {
  fill(0);
  sts(slot(tid()), tid());
  if (kSync) sync_threads();
  stg(params.output + tid(), lds<uint32_t>(slot((tid() + 32) % 64)));
}

template <bool kSync>
void hand_over_between_lanes(Params params) {
  fill(0);
  sts(slot(tid()), tid());
  if (kSync) sync_warp();
  stg(params.output + tid(), lds<uint32_t>(slot(tid() ^ 1)));
}

template <bool kSync>
void overwrite_between_warps(Params params) {
  fill(tid());
  stg(params.output + tid(), lds<uint32_t>(slot((tid() + 32) % 64)));
  if (kSync) sync_threads();
  sts(slot(tid()), 0u);
}

template <bool kSync>
void write_twice(Params) {
  if (warp_idx() == 0) sts(slot(lane_idx()), 0u);
  if (kSync) sync_threads();
  if (warp_idx() == 1) sts(slot(lane_idx()), 1u);
}

template <bool kSync>
void store_then_ldmatrix(Params params) {
  const uint32_t row = smem_base() + 16 * lane_idx();
  sts(row, uint4{tid(), 0, 0, 0});
  if (kSync) sync_warp();
  uint32_t r[4];
  ldmatrix_x4(row, r);  // finding: ldmatrix_of_unsynced_rows
  stg(params.output + tid(), r[0]);
}

// The instruction has read all rows before any lane goes on.
void ldmatrix_then_store(Params params) {
  store_then_ldmatrix<true>(params);
  sts(smem_base() + 16 * (lane_idx() ^ 1), uint4{0, 0, 0, 0});
}

void halves_of_a_word(Params params) {
  sts(smem_base() + 2 * tid(), static_cast<uint16_t>(tid()));
  const uint32_t own = lds<uint16_t>(smem_base() + 2 * tid());
  stg(params.output + tid(), own);
}

// Warp 0 fills, warp 1 uses; only the consumer waits.
template <bool kArrive>
void producer_and_consumer(Params params) {
  fill(0);
  if (warp_idx() == 0) {
    if (!kArrive) named_barrier_arrive(1, 64);
    sts(slot(lane_idx()), lane_idx());
    if (kArrive) named_barrier_arrive(1, 64);
  } else {
    named_barrier_sync(1, 64);
    stg(params.output + lane_idx(), lds<uint32_t>(slot(lane_idx())));
  }
}

// ---- what was never written, or not yet ----

void uninitialised(Params params) {
  if (tid() != 7) sts(slot(tid()), tid());
  stg(params.output + tid(), lds<uint32_t>(slot(tid())));  // finding: uninitialised
}

void uninitialised_row(Params params) {
  if (tid() != 9) sts(smem_base() + 16 * tid(), uint4{0, 0, 0, 0});
  sync_warp();
  uint32_t r[4];
  ldmatrix_x4(smem_base() + 16 * tid(), r);  // finding: uninitialised_row
  stg(params.output + tid(), r[0]);
}

// Two groups of copies; the first is read when `kPending` of them may be under way.
template <int kPending>
void copies(Params params) {
  const uint32_t dst = smem_base() + 16 * tid();
  cp_async_16(dst, params.input + 4 * tid(), true);
  cp_async_commit();
  cp_async_16(dst + 512, params.input + 4 * tid(), tid() % 2 == 0);
  cp_async_commit();
  cp_async_wait<kPending>();
  stg(params.output + tid(), lds<uint32_t>(dst));  // finding: waits_for_too_few
  cp_async_wait<0>();
  stg(params.output + 32 + tid(), lds<uint32_t>(dst + 512));
}

template <bool kSync>
void read_the_copy_of_another_warp(Params params) {
  cp_async_16(smem_base() + 16 * tid(), params.input + 4 * tid(), true);
  cp_async_commit();
  if (!kSync) sync_threads();
  cp_async_wait<0>();
  if (kSync) sync_threads();
  const uint32_t other = (tid() + 32) % 64;
  stg(params.output + tid(), lds<uint32_t>(smem_base() + 16 * other));
}

void store_into_a_copy(Params params) {
  cp_async_16(smem_base() + 16 * tid(), params.input + 4 * tid(), true);
  cp_async_commit();
  sts(smem_base() + 16 * tid(), 0u);  // finding: store_into_a_copy
}

void exit_with_a_copy(Params params) {
  const uint32_t* src = params.input + 4 * tid();
  cp_async_16(smem_base() + 16 * tid(), src, true);  // finding: exit_with_a_copy
  cp_async_commit();
}

// ---- addresses ----

void shared_past_the_end(Params) { sts(smem_base() + 4096 - 32 * 4 + 4 * (tid() + 1), 0u); }
void shared_without_base(Params) { sts(4 * tid(), 0u); }
void shared_misaligned(Params) { sts(smem_base() + 4 * tid(), uint4{0, 0, 0, 0}); }
void global_past_the_end(Params params) { stg(params.output + 1024, 0u); }
void global_before_the_start(Params params) { ldg(params.input - 1); }
void global_misaligned(Params params) {
  ldg(reinterpret_cast<const uint4*>(params.input + 1));  // finding: global_misaligned
}
void copy_past_the_end(Params params) {
  cp_async_16(smem_base() + 16 * tid(), params.input + 1024 - 4 * 31 + 4 * tid(), true);
  sync_warp();
}
void copy_misaligned(Params params) { cp_async_16(smem_base(), params.input + 1, false); }
void write_to_the_input(Params params) { stg(const_cast<uint32_t*>(params.input), 0u); }
void two_writers(Params params) { stg(params.output + tid(), 0u); }
void two_threads_write(Params params) { stg(params.output + tid() / 2, 0u); }
void read_the_output(Params params) {
  stg(params.output + tid(), 1u);
  ldg(params.output + tid());  // finding: read_the_output
}
void write_what_another_block_reads(Params params) {
  if (block_idx().x == 0) ldg(params.output + tid());
  if (block_idx().x == 1) stg(params.output + tid(), 0u);
}
void blocks_write_halves_of_a_word(Params params) {
  if (tid() == 0) stg(reinterpret_cast<uint16_t*>(params.output) + block_idx().x, uint16_t{1});
}

// ---- warps and barriers ----

void different_instructions(Params) {
  if (lane_idx() < 16) {
    sync_warp();
  } else {
    ballot(true);
  }
}

void different_lines(Params) {
  if (lane_idx() < 16) {
    sync_warp();
  } else {
    sync_warp();
  }
}

void a_lane_leaves(Params) {
  if (tid() == 3) return;
  sync_warp();  // finding: a_lane_leaves
}

void a_warp_leaves(Params params) {
  if (warp_idx() == 0) return;
  sync_threads();
  stg(params.output + tid(), tid());
}

void nobody_else_comes(Params) {
  if (warp_idx() == 0) {
    named_barrier_sync(1, 64);  // finding: nobody_else_comes
  } else {
    named_barrier_sync(2, 64);
  }
}

void different_counts(Params) { named_barrier_sync(1, warp_idx() == 0 ? 64 : 96); }
void barrier_zero(Params) { named_barrier_sync(0, 64); }
void part_of_a_warp(Params) { named_barrier_sync(1, 40); }
void arrives_twice(Params) {
  named_barrier_arrive(1, 64);
  named_barrier_arrive(1, 64);  // finding: arrives_twice
}

void bf16_product(Params) {
  float c[4] = {};
  const uint32_t a[4] = {};
  mma_m16n8k16<bf16_t>(c, a, 0, 0);  // finding: bf16_product
}

void nothing(Params) {}

// ---- bank conflicts ----

// Rows of 64 bytes: of 8 rows every other one is in the same banks.
void ldmatrix_conflicts(Params) {
  for (int i = 0; i < 4; ++i) sts(smem_base() + 64 * tid() + 16 * i, uint4{0, 0, 0, 0});
  sync_warp();
  uint32_t r[4];
  ldmatrix_x4(smem_base() + 64 * tid(), r);  // finding: ldmatrix_conflicts
}

void column_conflicts(Params) { sts(smem_base() + 128 * tid(), 0u); }
void broadcast(Params params) {
  if (tid() == 0) sts(slot(0), 5u);
  sync_warp();
  stg(params.output + tid(), lds<uint32_t>(slot(0)));
}

struct Case {
  const char* name;
  void (*kernel)(Params);
};

const Case kCases[] = {
    {"read_after_write", hand_over_between_warps<false>},
    {"read_after_write, synced", hand_over_between_warps<true>},
    {"between_lanes", hand_over_between_lanes<false>},
    {"between_lanes, synced", hand_over_between_lanes<true>},
    {"write_after_read", overwrite_between_warps<false>},
    {"write_after_read, synced", overwrite_between_warps<true>},
    {"write_after_write", write_twice<false>},
    {"write_after_write, synced", write_twice<true>},
    {"ldmatrix_of_unsynced_rows", store_then_ldmatrix<false>},
    {"ldmatrix_of_unsynced_rows, synced", store_then_ldmatrix<true>},
    {"ldmatrix_then_store", ldmatrix_then_store},
    {"halves_of_a_word", halves_of_a_word},
    {"arrival_before_the_store", producer_and_consumer<false>},
    {"arrival_before_the_store, synced", producer_and_consumer<true>},
    {"uninitialised", uninitialised},
    {"uninitialised_row", uninitialised_row},
    {"waits_for_too_few", copies<2>},
    {"waits_for_one", copies<1>},
    {"barrier_before_wait", read_the_copy_of_another_warp<false>},
    {"barrier_after_wait", read_the_copy_of_another_warp<true>},
    {"store_into_a_copy", store_into_a_copy},
    {"exit_with_a_copy", exit_with_a_copy},
    {"shared_past_the_end", shared_past_the_end},
    {"shared_without_base", shared_without_base},
    {"shared_misaligned", shared_misaligned},
    {"global_past_the_end", global_past_the_end},
    {"global_before_the_start", global_before_the_start},
    {"global_misaligned", global_misaligned},
    {"copy_past_the_end", copy_past_the_end},
    {"copy_misaligned", copy_misaligned},
    {"write_to_the_input", write_to_the_input},
    {"two_writers", two_writers},
    {"two_threads_write", two_threads_write},
    {"read_the_output", read_the_output},
    {"write_what_another_block_reads", write_what_another_block_reads},
    {"blocks_write_halves_of_a_word", blocks_write_halves_of_a_word},
    {"different_instructions", different_instructions},
    {"different_lines", different_lines},
    {"a_lane_leaves", a_lane_leaves},
    {"a_warp_leaves", a_warp_leaves},
    {"nobody_else_comes", nobody_else_comes},
    {"different_counts", different_counts},
    {"barrier_zero", barrier_zero},
    {"part_of_a_warp", part_of_a_warp},
    {"arrives_twice", arrives_twice},
    {"bf16_product", bf16_product},
    {"nothing", nothing},
    {"ldmatrix_conflicts", ldmatrix_conflicts},
    {"column_conflicts", column_conflicts},
    {"broadcast", broadcast},
};

}  // namespace
}  // namespace fastattn::cuda

// ---- what the tests call ----

using namespace fastattn;

extern "C" const char* set_options(uint64_t seed, int threads, int schedule,
                                   int compute_capability) {
  static std::string error;
  emulator::Options options;
  options.seed = seed;
  options.threads = threads;
  options.schedule = static_cast<emulator::Schedule>(schedule);
  options.compute_capability = compute_capability;
  try {
    emulator::set_options(options);
  } catch (const std::invalid_argument& caught) {
    error = caught.what();
    return error.c_str();
  }
  return nullptr;
}

// Returns the finding; null if there is none.
extern "C" const char* run(const char* name, const uint32_t* input, uint32_t* output,
                           int registered, uint32_t grid, uint32_t threads, uint32_t smem_bytes) {
  static std::string finding;
  emulator::reset_counters();
  emulator::GlobalBuffers buffers;
  if (registered) {
    buffers.add("input", input, 4096, /*writable=*/false);
    buffers.add("output", output, 4096, /*writable=*/true);
  }
  for (const cuda::Case& c : cuda::kCases) {
    if (std::strcmp(c.name, name) != 0) continue;
    try {
      cuda::launch(c.kernel, {grid}, {threads}, smem_bytes, nullptr, {input, output});
    } catch (const emulator::Finding& caught) {
      finding = caught.what();
      return finding.c_str();
    }
    return nullptr;
  }
  finding = "there is no such kernel";
  return finding.c_str();
}

extern "C" void read_counters(uint64_t* counters) {
  const emulator::Counters read = emulator::counters();
  std::memcpy(counters, &read, sizeof read);
}

extern "C" const char* worst_conflict_site() {
  static std::string site;
  const auto sites = emulator::conflict_sites();
  site = sites.empty() ? "" : sites[0].first + " " + std::to_string(sites[0].second);
  return site.c_str();
}
