// The place in a kernel's source that a report names.
#pragma once

namespace fastattn::emulator {

struct Site {
  const char* file = nullptr;
  int line = 0;

  // As a default argument: where the function that has it is called.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace fastattn::emulator
