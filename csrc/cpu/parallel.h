// Work split over threads, and the memory each of them computes in.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/simd.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

template <class T>
inline T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T max_of(T a, T b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Hands out arrays from one block, each aligned to a cache line. With a null block it only counts.
class Carver {
 public:
  explicit Carver(void* block) : block_(static_cast<char*>(block)) {}
  template <class T>
  T* take(int64_t count) {
    char* array = block_ + used_;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return reinterpret_cast<T*>(block_ == nullptr ? nullptr : array);
  }
  size_t used() const { return used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

// The sequences of a batch, those with most rows first: what is long must not start last.
class Order {
 public:
  explicit Order(const AttentionParams& params)
      : sequences_(new int32_t[static_cast<size_t>(params.batch_size)]) {
    longest_first(params.cu_seqlens_q, params.batch_size, sequences_);
  }
  ~Order() { delete[] sequences_; }
  Order(const Order&) = delete;
  Order& operator=(const Order&) = delete;
  int64_t operator[](int64_t i) const { return sequences_[i]; }

 private:
  int32_t* sequences_;
};

// Calls body(i, scratch) for i in [0, count), in that order of beginning, on up to num_threads
// threads. What is computed for one i never depends on the thread, so results do not depend on
// their number.
template <class Body>
inline void parallel_for(int64_t count, int num_threads, size_t scratch_bytes, const Body& body) {
  bool out_of_memory = false;
  const int threads = static_cast<int>(min_of<int64_t>(max_of(num_threads, 1), count));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    void* scratch = thread_scratch(scratch_bytes);
    if (scratch == nullptr) {
#pragma omp atomic write
      out_of_memory = true;
    }
    // Every thread of a team must enter the loop, also one that can do nothing in it.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
      if (scratch != nullptr) body(i, scratch);
    }
  }
  if (out_of_memory) throw_out_of_memory();
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
