#include "emulator/fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define FASTATTN_ADDRESS_SANITIZER 1
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define FASTATTN_ADDRESS_SANITIZER 0
#endif

#if !FASTATTN_FIBRES_ARE_UCONTEXTS
// Pushes the registers that a function must preserve (System V ABI), exchanges the stack pointer,
// and pops those of the other side. The control words of the floating-point units are the same
// everywhere.
asm(R"(
.text
.hidden fastattn_emulator_switch
.globl fastattn_emulator_switch
.type fastattn_emulator_switch, @function
.p2align 4
fastattn_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastattn_emulator_switch, . - fastattn_emulator_switch
)");
extern "C" void fastattn_emulator_switch(void** save, void* resume);
#endif

namespace fastattn::emulator {
namespace {

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

#if FASTATTN_ADDRESS_SANITIZER
Stack stack_of_os_thread() {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  size_t bytes = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &bytes);
  pthread_attr_destroy(&attributes);
  return {static_cast<char*>(bottom), bytes};
}
#endif

}  // namespace

Stacks::~Stacks() { release(); }

void Stacks::release() {
  for (char* stack : stacks_) munmap(stack - page_bytes(), bytes_ + page_bytes());
  stacks_.clear();
}

void Stacks::reserve(size_t count, size_t bytes) {
  bytes = (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  if (bytes > bytes_) {
    release();
    bytes_ = bytes;
  }
  while (stacks_.size() < count) {
    void* memory = mmap(nullptr, bytes_ + page_bytes(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page_bytes(), PROT_NONE);
    stacks_.push_back(static_cast<char*>(memory) + page_bytes());
  }
}

void Fibre::start(Stack stack, size_t colour, void (*entry)()) {
  constexpr size_t kColours = 32, kColourBytes = 64;
  stack_ = stack;
  stack_.bytes -= colour % kColours * kColourBytes;
  sanitizer_stack_ = nullptr;
#if FASTATTN_ADDRESS_SANITIZER
  ASAN_UNPOISON_MEMORY_REGION(stack.bottom, stack.bytes);  // frames that were left for good
#endif
#if FASTATTN_FIBRES_ARE_UCONTEXTS
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.bottom;
  context_.uc_stack.ss_size = stack_.bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  // As if entry had been called, from address 0, and had then called the switch.
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack_.bottom + stack_.bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

void Fibre::entered() {
#if FASTATTN_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void switch_fibre(Fibre& from, Fibre& to) {
#if FASTATTN_ADDRESS_SANITIZER
  const Stack stack = to.stack_.bottom ? to.stack_ : stack_of_os_thread();
  __sanitizer_start_switch_fiber(&from.sanitizer_stack_, stack.bottom, stack.bytes);
#endif
#if FASTATTN_FIBRES_ARE_UCONTEXTS
  swapcontext(&from.context_, &to.context_);
#else
  fastattn_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#if FASTATTN_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.sanitizer_stack_, nullptr, nullptr);
#endif
}

}  // namespace fastattn::emulator
