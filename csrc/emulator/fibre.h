// Threads of execution of our own making, which run one at a time and say themselves when the next
// one goes on.
#pragma once

#include <cstddef>
#include <vector>

#if !defined(__x86_64__) || defined(FASTATTN_EMULATOR_UCONTEXT)
#define FASTATTN_FIBRES_ARE_UCONTEXTS 1
#include <ucontext.h>
#else
#define FASTATTN_FIBRES_ARE_UCONTEXTS 0
#endif

namespace fastattn::emulator {

struct Stack {
  char* bottom = nullptr;  // lowest address
  size_t bytes = 0;
};

// Stacks for fibres, kept from block to block. Below each lies a page that cannot be touched.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // At least `count` stacks of at least `bytes` each. Those of before move only if `bytes` grew.
  void reserve(size_t count, size_t bytes);
  Stack operator[](size_t i) const { return {stacks_[i], bytes_}; }

 private:
  void release();

  std::vector<char*> stacks_;
  size_t bytes_ = 0;
};

// Default constructed: the execution that is under way, once it is switched from.
class Fibre {
 public:
  // The next switch to this fibre calls entry(), which must not return. `colour` staggers where
  // fibres begin on their stacks: at equal offsets from page boundaries all of them would share a
  // few sets of the cache.
  void start(Stack stack, size_t colour, void (*entry)());

  friend void switch_fibre(Fibre& from, Fibre& to);
  // To be called first by an entry function.
  static void entered();

 private:
#if FASTATTN_FIBRES_ARE_UCONTEXTS
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  Stack stack_;
  void* sanitizer_stack_ = nullptr;
};

void switch_fibre(Fibre& from, Fibre& to);

}  // namespace fastattn::emulator
