// Which emulated thread runs next.
#include "emulator/block.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

int lowest(uint32_t mask) { return __builtin_ctz(mask); }
int highest(uint32_t mask) { return 31 - __builtin_clz(mask); }

// The first bit set, from bit `start` upwards and round again.
int first_from(uint32_t mask, uint32_t start) {
  const uint32_t rotated = mask >> start | (start ? mask << (32 - start) : 0);
  return (lowest(rotated) + static_cast<int>(start)) % 32;
}

}  // namespace

__thread Block* current_block = nullptr;

// Steele, Lea and Flood's SplitMix64 (2014): any seed is as good as another.
Random::Random(uint64_t seed) : state_(seed) {}

uint32_t Random::next() {
  uint64_t x = state_ += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>(x >> 32);
}

Thread* Block::pick() {
  if (ready == 0) return nullptr;
  const Schedule schedule = launch->options.schedule;
  if (schedule != Schedule::kRandom) {
    const auto choose = schedule == Schedule::kInOrder ? lowest : highest;
    const int warp = choose(ready);
    return &threads[warp * kWarpSize + choose(warps[warp].runnable)];
  }
  // A warp usually goes on to its next instruction, as changing between warps is slow, and its
  // lanes run in another order each time.
  constexpr uint32_t kStay = 16;
  const uint32_t draw = random.next();
  const bool stay = draw % kStay != 0 && (ready >> current->warp & 1);
  const int warp = stay ? current->warp : first_from(ready, draw >> 8 & 31);
  return &threads[warp * kWarpSize + first_from(warps[warp].runnable, draw >> 16 & 31)];
}

void Block::suspend(Thread& thread) {
  Warp& warp = warps[thread.warp];
  warp.runnable &= ~(1u << thread.lane);
  if (warp.runnable == 0) ready &= ~(1u << thread.warp);
}

void Block::wake(int warp, uint32_t lanes) {
  warps[warp].runnable |= lanes;
  ready |= 1u << warp;
}

void Block::wait() {
  Thread* next = pick();
  if (!next) report_deadlock();
  if (next == current) return;
  Thread& self = *current;
  current = next;
  ++counters.switches;
  switch_fibre(self.fibre, next->fibre);
}

void Block::let_others_run() {
  constexpr uint32_t kEvery = 16;
  if (launch->options.schedule == Schedule::kRandom && random.next() % kEvery == 0) wait();
}

void Block::stop() {
  Thread& self = *current;
  current = nullptr;
  switch_fibre(self.fibre, os_thread);
  __builtin_unreachable();
}

void Block::exit_thread() {
  Thread& thread = *current;
  Warp& warp = this->warp();
  if (!thread.copies.empty()) {
    report(thread.copies.front().site,
           "in flight: the thread exits before this copy has ended; wait for it first");
  }
  if (warp.arrived != 0) {
    report(warp.site, text("divergence: a lane exits while others of its warp wait in %s",
                           name_of(warp.operation)));
  }
  if (!warp.products.empty()) {
    report(warp.products.front().site,
           "wgmma: the warp exits before this product has ended; wait for it first");
  }
  suspend(thread);
  warp.alive &= ~(1u << thread.lane);
  if (warp.alive == 0) exit_warp(thread.warp);
  if (alive_warps == 0) stop();
  wait();
  __builtin_unreachable();
}

void Block::report_deadlock() {
  std::string where;
  for (int w = num_warps - 1; w >= 0; --w) {
    if (warps[w].alive == 0) continue;
    current = &threads[w * kWarpSize + lowest(warps[w].alive)];
    const uint32_t waiting = warps[w].arrived ? warps[w].arrived : warps[w].alive;
    where = text("\n  warp %d: %d lanes in %s at %s", w, __builtin_popcount(waiting),
                 name_of(current->operation), to_string(current->site).c_str()) +
            where;
  }
  report(current->site, "deadlock: every thread waits" + where);
}

}  // namespace fastattn::emulator
