#include "emulator/report.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "emulator/block.h"

namespace fastattn::emulator {

std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char buffer[512];
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string to_string(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return text("%s:%d", slash ? slash + 1 : site.file, site.line);
}

void Launch::fail(std::exception_ptr with) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!failed.exchange(true)) error = std::move(with);
}

void report(Site site, const std::string& message) {
  Block& block = *current_block;
  const Thread& thread = *block.current;
  const std::string where =
      text("\n  at %s, block (%u, %u, %u), thread %d (warp %d, lane %d)", to_string(site).c_str(),
           block.idx.x, block.idx.y, block.idx.z, thread.index, thread.warp, thread.lane);
  block.launch->fail(std::make_exception_ptr(Finding(message + where)));
  block.stop();
}

}  // namespace fastattn::emulator
