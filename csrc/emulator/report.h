// How a launch ends that found something wrong.
#pragma once

#include <string>

#include "emulator/site.h"

namespace fastattn::emulator {

// printf, into a string.
__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...);

// "attention_fwd.cu:120"
std::string to_string(Site site);

// Ends the launch with a Finding about the emulated thread that runs.
[[noreturn]] void report(Site site, const std::string& message);

}  // namespace fastattn::emulator
