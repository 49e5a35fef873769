// The groups of functions of the CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace fastattn::bindings {
void register_cuda_attention(pybind11::module_& m);
void register_cuda_hidden(pybind11::module_& m);
}  // namespace fastattn::bindings
