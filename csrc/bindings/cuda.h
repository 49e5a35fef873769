// The groups of functions of the CUDA kernels, and what an emulator is told about their memory.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/view.h"
#ifdef FASTATTN_EMULATE
#include "emulator/control.h"
#endif

namespace fastattn::bindings {

void register_cuda_attention(pybind11::module_& m);
void register_cuda_hidden(pybind11::module_& m);

// The tensors that the kernels of one call may read or write. In an emulated build anything else is
// out of bounds while the object lives; on a GPU there is nothing to say.
class Buffers {
 public:
  void reads(const char* name, const OptionalView& view, size_t element_bytes) {
    add(name, view, element_bytes, /*writable=*/false);
  }
  void writes(const char* name, const OptionalView& view, size_t element_bytes) {
    add(name, view, element_bytes, /*writable=*/true);
  }

 private:
#ifdef FASTATTN_EMULATE
  void add(const char* name, const OptionalView& view, size_t element_bytes, bool writable) {
    if (!view.has_value()) return;
    size_t last = 0;  // the index in memory of the last element
    for (size_t dim = 0; dim < sizes(*view).size(); ++dim) {
      if (sizes(*view)[dim] == 0) return;
      last += static_cast<size_t>((sizes(*view)[dim] - 1) * strides(*view)[dim]);
    }
    buffers_.add(name, pointer(*view), (last + 1) * element_bytes, writable);
  }

  emulator::GlobalBuffers buffers_;
#else
  void add(const char* /*name*/, const OptionalView& /*view*/, size_t /*element_bytes*/,
           bool /*writable*/) {}
#endif
};

// Bytes of an element.
inline size_t bytes_of(const std::string& dtype) {
  switch (element_type(dtype)) {
    case ElementType::kFloat64:
      return 8;
    case ElementType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace fastattn::bindings
